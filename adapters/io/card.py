"""The model card of an adapter folder: metadata that the Hub reads, and what a person wants to know first."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

PIPELINES = {"image": "image-text-to-text", "audio": "audio-text-to-text", "video": "video-text-to-text"}
EXAMPLES = {"image": "cat.jpg", "audio": "bark.wav", "video": "clip.mp4"}
CONTROLS = ("shuffled", "blank", "none", "majority")
WHOLE = ("qa_accuracy", "qa_vqa")  # scores over all kinds of question


def card(
    config: Mapping,
    numbers: int,
    maps: int = 0,
    repo: str | None = None,
    result: Mapping | None = None,
    samples: Sequence[Mapping] = (),
    license: str | None = None,
    datasets: Sequence[str] = (),
    own: Sequence[str] = (),
    picture: str = "",
) -> str:
    """README.md for an adapter of `numbers` parameters, and `maps` of LoRA, described by its adapter.json.

    To be shared: `repo` is where, `result` what eval.json holds, `samples` lines of predictions.jsonl that may be shown
    to all, `license` the adapter's own, `datasets` hub ids of what it was trained on, `own` which of "lm" and "encoder"
    lie in a folder of whoever shares it, where others can't fetch them, `picture` the file that shows the samples.
    """
    parts = [
        _metadata(config, repo, result, license, datasets),
        f"# {_line(config['adapter'])} adapter",
        _about(config, numbers),
    ]
    parts += [_lora(config, maps) if maps else _LEFT, *([_use(config, repo, own)] if repo else [])]
    parts += [*([_samples(samples, picture)] if samples else []), *([_scores(config, result)] if result else [])]
    training = "".join(
        f"| {_cell(key.replace('_', ' '))} | {_cell(_rounded(value))} |\n" for key, value in config["training"].items()
    )
    parts += [f"| training | |\n|---|---|\n{training}".rstrip(), *([_licences(config, license)] if repo else [])]
    parts += ["`adapter.json` says exactly which encoder, preprocessing, language model and prompt form it needs."]
    return "\n\n".join(parts) + "\n"


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name and is no path here."""
    return (
        name.count("/") == 1
        and not name.startswith((".", "/", "~"))
        and all(name.split("/"))
        and not Path(name).exists()
    )


_LEFT = "Neither the encoder nor the language model was changed, and neither is in this folder."


def _metadata(
    config: Mapping, repo: str | None, result: Mapping | None, license: str | None, datasets: Sequence[str]
) -> str:
    lm, modality = config["language_model"]["name"], config["modality"]
    base = {"base_model": lm, "base_model_relation": "adapter"} if is_hub_id(lm) else {}
    pipeline = PIPELINES.get(modality, "text-generation") if config["tokens"] else "text-generation"
    measured = _results(result, pipeline, datasets, config["training"]) if repo and result else None
    data = ModelCardData(
        library_name="periscope",
        pipeline_tag=pipeline,
        license=license,
        datasets=list(datasets) or None,
        tags=["periscope", modality, config["adapter"]],
        eval_results=measured or None,
        model_name=repo.split("/")[1] if measured else None,
        **base,
    )
    return f"---\n{data.to_yaml()}\n---"


def _results(result: Mapping, pipeline: str, datasets: Sequence[str], training: Mapping) -> list[EvalResult]:
    """The scores in the form of the Hub's model-index, the controls beside each; single kinds of question are in the
    card's table.
    """
    found = []
    name = result.get("task") or (datasets[0] if datasets else str(training.get("features", "held-out media")))
    for split, part in (result.get("splits") or {}).items():
        broad = {name: value for name, value in part["real"].items() if not name.startswith("qa_") or name in WHOLE}
        for score, value in broad.items():
            beside = {control: part[control][score] for control in CONTROLS if score in (part.get(control) or {})}
            interval = ((part.get("intervals") or {}).get("real") or {}).get(score)
            facts = beside | ({"interval_95": interval} if interval else {})
            facts |= {"n": part["counts"][score]} if score in (part.get("counts") or {}) else {}
            found.append(
                EvalResult(
                    task_type=pipeline,
                    dataset_type=name,
                    dataset_name=name,
                    dataset_split=split,
                    metric_type=score,
                    metric_value=value,
                    metric_name=score,
                    metric_args=facts or None,
                )
            )
    return found


def _about(config: Mapping, numbers: int) -> str:
    lm, encoder = _line(config["language_model"]["name"]), config["encoder"]
    if not config["tokens"]:
        return (
            f"{numbers:,} parameters for the frozen language model `{lm}`: a soft prompt of {config['soft_prompt']}; "
            "no medium is read."
        )
    return (
        f"{numbers:,} parameters that let the frozen language model `{lm}` read {config['modality']} features\n"
        f"(`{config['features']['kind']}`) of the encoder `{_line(encoder.get('name', encoder.get('id')))}` as "
        f"{config['tokens']} tokens."
    )


def _lora(config: Mapping, maps: int) -> str:
    return (
        f"The language model was tuned too: `lora/` holds {maps:,} parameters of LoRA, r={config['lora']['r']} and\n"
        f"alpha={config['lora']['alpha']}, beside its own weights, which are unchanged. "
        "`peft.PeftModel.from_pretrained` loads it.\nNeither the encoder nor the language model is in this folder."
    )


def _use(config: Mapping, repo: str, own: Sequence[str]) -> str:
    example = EXAMPLES.get(config["modality"], "file")
    folders = "".join(f', {what}="FOLDER"' for what in own)
    names = {"lm": f"the language model `{_line(config['language_model']['name'])}`",
             "encoder": f"the encoder `{_line(config['encoder'].get('name'))}`"}  # fmt: skip
    where = f"""FOLDER is where you have {" and ".join(names[what] for what in own)}, which can't be fetched by name.
It is checked to be what this was trained with."""
    fetched = "Both models are found or\nfetched by the names above, and checked to be those this was trained with."
    flags = "".join(f" --{what} FOLDER" for what in own)
    return f"""## Use

From a clone of Periscope:

```python
import periscope

eyes = periscope.load("{repo}"{folders})
print(eyes.caption("{example}"))
```

or `python eval.py --run {repo} --{config["modality"]} {example}{flags} --prompt "..."`. {where if own else fetched}"""


_SCORES = """## Scores

Measured on held-out media, with 95% intervals. Beside each score what the same model gets without looking: from another
medium's features (shuffled), from their mean (blank), from none, and by the commonest answer (majority). The gain is
the share of what shuffled features leave open that looking answers; of CIDEr and CLIPScore, the difference."""


def _scores(config: Mapping, result: Mapping) -> str:
    lines = [_SCORES]
    if str(result.get("step", "")).lstrip("0") not in ("", str(config["training"].get("step"))):
        lines.append(f"They are those of step {str(result['step']).lstrip('0')}.")
    for split, part in (result.get("splits") or {}).items():
        controls = [name for name in CONTROLS if part.get(name)]
        head = ["score", "real", *controls, "gain", "n"]
        rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for score, value in part["real"].items():
            interval = ((part.get("intervals") or {}).get("real") or {}).get(score)
            shown = f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
            beside = [_number(part[control].get(score)) for control in controls]
            gain, count = (part.get("gain") or {}).get(score), (part.get("counts") or {}).get(score, "")
            rows.append("| " + " | ".join([_cell(score), shown, *beside, _number(gain, 2), str(count)]) + " |")
        lines.append(f"{_cell(split)}, {part.get('n')} answers:\n\n" + "\n".join(rows))
    return "\n\n".join(lines)


def _samples(samples: Sequence[Mapping], picture: str) -> str:
    rows = []
    for row in samples:
        said = (row.get("prompt") or "(caption)", *(row.get(name) or "" for name in ("answer", "reference", "control")))
        rows.append("| " + " | ".join(map(_cell, said)) + " |")
    head = "## Samples\n\nHeld-out inputs, evenly chosen.\n\n"
    head += f"![Held-out inputs, with what was asked, answered and true]({picture})\n\n" if picture else ""
    head += "| prompt | answer | reference | from another's features |\n|---|---|---|---|\n"
    return head + "\n".join(rows)


def _licences(config: Mapping, license: str | None) -> str:
    own = f"This adapter: {license}." if license else "Whoever shared this adapter named no licence for it."
    lm, encoder = _line(config["language_model"]["name"]), _line(config["encoder"].get("name"))
    return f"""## Licences

{own} It is of use only with `{lm}` and `{encoder}`, which keep licences of their own, as does what it was
trained on: look at theirs."""


def _rounded(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _line(text: object) -> str:
    """A name within a line of Markdown, between backticks."""
    return " ".join(str(text).replace("`", "'").split())


def _cell(text: object) -> str:
    """Words as a table's cell shows them, whatever they hold: no markup, no link and no picture."""
    return re.sub(r"([\\|`\[\]])", r"\\\1", escape(" ".join(str(text).split()), quote=False))
