"""What a new run takes over from the adapter that it starts from (`--init`), and what may not contradict it."""

from pathlib import Path

from periscope.adapters.io.schema import CONFIG, AdapterConfig, read_adapter_config
from periscope.adapters.lm.identity import same_language_model
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.lora import parse_lora
from periscope.errors import RunError
from periscope.shards.read import FeatureSet
from periscope.training.run import Run

# What a projector and a soft prompt are made of: another run can go on with these, not change them.
FORM = ("adapter", "soft_prompt", "soft_prompt_mlp", "output_norm", "projector_hidden", "projector_layers")


def start_folder(path: Path | str, modality: str = "") -> Path:
    """The adapter folder at `path`: itself, or that of a run's last checkpoint; of several that of `modality`. Raises
    RunError for a run without one, and for one that holds several where no modality is named.
    """
    path = Path(path)
    if (path / CONFIG).is_file():
        return path
    if modality:
        return Run.open(path).step_folder() / f"adapter-{modality}"
    first, *others = Run.open(path).adapter_folders()
    if others:
        raise RunError(f"{path} holds {1 + len(others)} adapters; name the folder of one, as {first}")
    return first


def start_settings(path: Path | str) -> dict:
    """The settings that a run or an adapter folder brings: its adapter's form, the size of its LoRA, the template, the
    language model and, of a run, the features. Raises RunError or AdapterError when there is no whole adapter.
    """
    folder = start_folder(path)
    config = read_adapter_config(folder)
    template = config.template
    settings = {name: getattr(config, name) for name in FORM} | {"lm": config.language_model.name}
    if injection := config.injection:
        settings |= {"inject_layers": [injection.start, injection.end], "epalm_compat": injection.compat}
    if config.lora:
        settings["lora"] = f"r={config.lora.r},alpha={config.lora.alpha}"
    settings |= {"template": template.style, "delimiters": list(template.delimiters)}
    settings |= {"soft_prompt_place": template.soft_prompt, "media_place": template.media}
    names = ("caption_prompt", "question", "row_separator", "box_decimals", "eos", "loss_on")
    settings |= {name: getattr(template, name) for name in names}
    if folder != Path(path):
        settings |= {name: value for name, value in Run.open(path).config.items() if name in ("features", "lm")}
    return settings


def over_start(start: dict, recipe: dict, flags: dict, path: Path | str) -> dict:
    """A recipe over what `start_settings(path)` gave, without its ways to begin a new adapter, and on the language
    model of the start. With another style of template, the words of the old one don't count.

    Raises RunError when the recipe or the flags want the adapter or its LoRA in another form, and for flags that begin
    a new one.
    """
    asked = recipe | flags
    for name in (*FORM, "inject_layers", "epalm_compat", "lora"):
        if name not in asked or name not in start:
            continue
        same = parse_lora(asked[name]) == parse_lora(start[name]) if name == "lora" else asked[name] == start[name]
        if not same:
            flag, had = name.replace("_", "-"), f"{path} has --{name.replace('_', '-')} {start[name]}"
            mend = f"not {asked[name]}; leave --{flag} out" if name in flags else (
                f"and the recipe wants {asked[name]}; start from a run that has this, pass --{flag} {start[name]}"
            )  # fmt: skip
            raise RunError(f"{had}, {mend}, or train a new adapter without --init")
    for name in ("start_words", "warm_start"):
        if flags.get(name):
            raise RunError(
                f"--{name.replace('_', '-')} begins a new adapter, and --init goes on with one; leave it out"
            )
    if asked.get("template", start["template"]) != start["template"]:
        start = {name: value for name, value in start.items() if name not in ("caption_prompt", "question")}
    return start | recipe | {"lm": start["lm"], "start_words": "", "warm_start": 0}


def refuse_other_start(config: AdapterConfig, path: Path | str, features: FeatureSet, lm: LanguageModel) -> None:
    """Raise RunError when the adapter at `path`, whose adapter.json is `config`, was trained with another encoder than
    that of `features`, or with another language model.
    """
    ours, theirs = config.encoder, features.manifest["encoder"]
    if ours.get("fingerprint") != theirs["fingerprint"]:
        raise RunError(
            f"{path} was trained on features of {ours.get('name')}, and {features.path} was made with {theirs['name']} "
            "(weights, layer or preprocessing differ); encode the media with that one"
        )
    if difference := same_language_model(config.language_model.identity, lm.identity()):
        raise RunError(f"{lm.name} is not the language model that {path} was trained with: {difference}")
