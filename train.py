"""Fit a small adapter on cached features against a frozen language model.

python train.py --adapter mlp16                                     the newest feature set
python train.py --adapter linear --features features/photos --lm HuggingFaceTB/SmolLM2-360M
python train.py --resume runs/first
"""

import hashlib
import math
import time
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Annotated, Literal

import tyro

from console import choose_device, run
from training import RunError


@dataclass
class Options:
    """Every choice; what isn't given comes from the recipe, else is chosen and printed with its reason."""

    adapter: str | None = None
    """Projector: linear, linearK, mlp, mlpK, groupK, windowK (K a whole number), as in mlp16."""
    features: Path | None = None
    """Feature set to train on (default: the newest in features/ that fits the adapter)."""
    lm: str | None = None
    """Frozen language model: a folder or a hub id."""
    name: str | None = None
    """The run is written to runs/NAME, which must not exist (default: the date and the adapter)."""
    recipe: str | None = None
    """A recipe of recipes/ (or a TOML file) to take the other choices from."""
    resume: Path | None = None
    """Go on with this run folder, exactly where its last checkpoint was."""
    text: Path | None = None
    """Another texts file for the same media, such as new captions (default: the feature set's own)."""
    partial: bool = False
    """Accept a texts file that names media the feature set lacks; they are counted and left out."""
    soft_prompt: int | None = None
    """Learned vectors that stand among the words (0: none)."""
    soft_prompt_place: Literal["before", "after", "around"] | None = None
    """Where these stand: before the media, after them, or around the question."""
    soft_prompt_mlp: bool | None = None
    """Train these through a small MLP, as eP-ALM does."""
    output_norm: bool | None = None
    """Keep the projected tokens at the word embeddings' scale by a norm with a learned gain."""
    projector_hidden: int | None = None
    """Width between a projector's layers, where it has such a width (0: its own choice, see docs/projectors.md)."""
    projector_layers: int | None = None
    """Blocks of a projector that has such (perceiverK, maplK); default: its own, 6 and 4."""
    inject_layers: tuple[int, int] | None = None
    """For epalm: the first of the language model's layers that is given the medium, and the first that no longer is
    (default: two layers for each block of the encoder, up to the last layer but one)."""
    epalm_compat: bool | None = None
    """For epalm: as in its released code, where the medium's row also sees what comes later, which leaks the answer."""
    start_words: str | None = None
    """Start the adapter's tokens from these words' embeddings, so that each has a meaning to begin with."""
    token_noise: float | None = None
    """Noise on the projected tokens while training, as a share of their RMS (0: off); 0.3 helps small models."""
    template: Literal["plain", "chat"] | None = None
    """How turns become text (default: chat when the tokenizer has a chat template)."""
    delimiters: tuple[str, str] | None = None
    """Text before and after each medium ("" "" for none)."""
    precision: Literal["auto", "fp32", "fp16", "bf16", "8bit", "4bit"] | None = None
    """How the frozen weights are held."""
    steps: int | None = None
    """Optimizer steps in all."""
    batch: int | None = None
    """Texts per optimizer step."""
    micro_batch: int | None = None
    """Texts per forward pass; changes memory and speed, never the loss (0: as many as fit)."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    warmup: float | None = None
    """Share of the steps over which the learning rate rises; then it falls along a cosine to 0."""
    weight_decay: float | None = None
    """AdamW's weight decay (0: off)."""
    clip: float | None = None
    """Largest gradient norm (0: off)."""
    texts_per_medium: int | None = None
    """How many texts of one medium travel together (0: all; 1: none)."""
    limit: int | None = None
    """Train on the first so many texts only (0: all)."""
    eval_every: int | None = None
    """Steps between looks at the held-out texts."""
    save_every: int | None = None
    """Steps between checkpoints; one is also written when the held-out loss is best, every 10 minutes, at the end."""
    seed: int | None = None
    """Seed of the adapter's start and of the order of texts."""
    device: Annotated[str, tyro.conf.arg(help="auto, cuda, cuda:N or cpu.")] = "auto"


ABOUT_THE_CALL = {"name", "recipe", "resume", "device", "partial"}
KEEP_CHECKPOINTS = 3
SAVE_SECONDS = 600
BAD_LOSSES = 5


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    device = choose_device(options.device)

    import torch

    from adapters.checkpoint import load_adapter, save_adapter
    from adapters.injection import injection_into
    from adapters.language_model import load_language_model, same_language_model, weights_sha256
    from adapters.model import AdaptedModel, Adapter
    from adapters.projectors import find_projector
    from adapters.prompt import Prompt, Template, default_template
    from scoring.control import stand_ins
    from shards.read import FeatureSet
    from training.data import Encoded, Steps, feature_shape, load_steps, medium_contents
    from training.heldout import choose_heldout, heldout_losses, sample_answers, scale_ratio, still_blind
    from training.plan import plan
    from training.progress import ProgressBar, StopRequest
    from training.run import Run, load_optimizer_state, optimizer_state
    from training.settings import refuse_changes, resumed, settle_length
    from training.step import learning_rate, take_step

    # 1. What is to be done. A resumed run has its own settings.
    old = Run.open(options.resume) if options.resume else None
    settings = resumed(old, given(options)) if old else new_settings(options)
    kind = find_projector(settings["adapter"])[0].kind

    # 2. The features and their words, and the frozen language model that is to read them.
    features = FeatureSet(settings["features"])
    shape = feature_shape(features, kind)
    texts = features.texts(settings.get("text"), partial=options.partial)
    identity = {
        "features": features.sha256,
        "texts": sha256(settings["text"]) if settings.get("text") else features.texts_sha256,
        "device": torch.device(device).type,
    }
    if old:
        checkpoint = old.load_state(device)
        facts = checkpoint["facts"]
        refuse_changes(facts, **identity)
        if torch.get_num_threads() != facts["threads"]:
            print(f"threads: {facts['threads']}, as at the checkpoint, because sums depend on it")
            torch.set_num_threads(facts["threads"])
    lm = load_language_model(settings["lm"], device, settings["precision"])
    note = f", {lm.note}" if lm.note else ""
    print(f"language model: {lm.name}, {lm.precision} ({lm.reason}), hidden_size {lm.hidden_size}{note}")
    frozen = weights_sha256(lm.model)

    # 3. The adapter between the two, new or from the checkpoint.
    if old:
        adapter, about = load_adapter(old.step_folder() / "adapter", device)
        if difference := same_language_model(about["language_model"]["identity"], lm.identity()):
            raise RunError(f"{lm.name} is not the language model that {old.path} was trained with: {difference}")
        template = Template.from_dict(about["template"])
    else:
        torch.manual_seed(settings["seed"])
        names = ("soft_prompt", "soft_prompt_mlp", "output_norm", "projector_hidden", "projector_layers")
        form = {name: settings[name] for name in names}
        if kind == "layers":
            form["injection"] = injection_into(lm, shape.tokens, settings["inject_layers"], settings["epalm_compat"])
        adapter = Adapter(settings["adapter"], shape, lm.hidden_size, lm.embedding_rms, **form)
        adapter.to(device)
        if adapter.soft_prompt is not None:
            adapter.soft_prompt.start_from(
                lm.embed(torch.randint(len(lm.tokenizer), (adapter.soft_tokens,)).to(device))
            )
        template = default_template(
            lm.tokenizer, settings.get("template"), settings.get("delimiters"), settings["soft_prompt_place"]
        )
    model = AdaptedModel(lm, adapter, Prompt(lm.tokenizer, template), settings.get("token_noise", 0.0))
    trained = sum(parameter.numel() for parameter in adapter.parameters())
    print(f"adapter: {adapter.spec}, {trained:,} parameters, {shape.kind} to {adapter.tokens} tokens")

    # 4. The words: what is learnt from, what is held out, and whose features stand in for whose in the control.
    encoded = Encoded(features, model.prompt, adapter)
    learn = [text for text in texts if text.split == "train"][: settings["limit"] or None]
    kept = encoded.keep(learn, lm.max_length)
    if not kept.texts:
        raise RunError(
            f"{features.path} has no words to train on ({len(texts)} texts, {len(learn)} of them for training); "
            "put a .txt beside each picture and run precompute.py again, or pass --text FILE"
        )
    heldout = choose_heldout(encoded, texts, kept.texts, lm.max_length)
    stand_in = stand_ins(medium_contents(features, heldout))
    left_out = "".join(f"; {count} left out: {reason}" for reason, count in kept.dropped.items())
    print(f"texts: {len(kept.texts):,} to learn from, {len(heldout)} held out for the loss{left_out}")

    # 5. How long, and what it will need.
    steps = Steps(encoded, kept, settings["batch"], settings["seed"], settings["texts_per_medium"])
    settle_length(settings, steps.per_epoch)
    needs = plan(lm, adapter)
    print(needs)
    micro = facts["micro_batch"] if old else settings["micro_batch"]
    micro = micro or needs.micro_batch(settings["batch"], max(kept.lengths))

    # 6. A folder of its own, or the old one at its last checkpoint.
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"])
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=lm.dtype == torch.float16)
    if old:
        folder, first, best = old, facts["step"], facts["best"]
        load_optimizer_state(optimizer, checkpoint["tensors"])
        scaler.load_state_dict(facts["scaler"])
        torch.set_rng_state(checkpoint["tensors"]["generator"].cpu())
        folder.cut_back(first)
        print(f"run: {folder.path}, going on after step {first} of {settings['steps']}")
    else:
        rows = steps[0].rows.to(device)
        factor = adapter.match_scale(rows)
        if words := settings["start_words"]:
            ids = lm.tokenizer.encode(words, add_special_tokens=False)
            adapter.start_from(lm.embed(torch.tensor(ids, dtype=torch.long, device=device)), rows)
        settings |= {"template": template.style, "delimiters": list(template.delimiters)}
        folder, first, best = Run.create(run_path(options, adapter.spec), settings), 0, None
        print(f"run: {folder.path}" + (f", the projector's last layer scaled by {factor:.3g}" if factor != 1 else ""))

    def save(step: int, is_best: bool) -> None:
        about = {
            "modality": features.manifest["modality"],
            "encoder": features.manifest["encoder"],
            "storage": features.manifest["features"][shape.kind],
            "language_model": {"name": lm.name, "identity": lm.identity()},
            "template": template.to_dict(),
            "training": {"features": features.path.name, "texts": len(kept.texts), "step": step, "held-out loss": best}
            | {key: settings[key] for key in ("steps", "batch", "lr", "seed")},
        }
        state = {
            "tensors": optimizer_state(optimizer) | {"generator": torch.get_rng_state()},
            "facts": identity
            | {"best": best, "micro_batch": micro, "threads": torch.get_num_threads(), "scaler": scaler.state_dict()},
        }
        folder.save(step, lambda path: save_adapter(path, adapter, about), state, KEEP_CHECKPOINTS, is_best)

    # 7. Train.
    stop, bar = StopRequest(), ProgressBar(settings["steps"], first)
    bad_losses, saved_at = 0, time.monotonic()
    on_gpu = torch.device(device).type == "cuda"
    loader = load_steps(steps, first, settings["steps"], workers=2 if on_gpu else 0, pin=on_gpu)
    for step, batch in enumerate(bar.timed(loader), first + 1):
        rate = learning_rate(step, settings["steps"], settings["lr"], settings["warmup"])
        optimizer.param_groups[0]["lr"] = rate
        loss, norm, micro = take_step(model, optimizer, scaler, batch, micro, settings["clip"])
        folder.log(
            step=step, loss=loss, lr=rate, grad_norm=norm, targets=batch.targets, **bar.update(loss, batch.targets)
        )
        if not math.isfinite(loss):
            bad_losses += 1
            bar.say(f"step {step}: the loss is {loss}, so no step was taken ({bad_losses} of at most {BAD_LOSSES})")
            if bad_losses == BAD_LOSSES:
                raise RunError(f"the loss was {loss} {BAD_LOSSES} times; try --precision bf16 or fp32, or a lower --lr")
        if scaler.is_enabled() and scaler.get_scale() < 1:
            raise RunError("fp16 gradients overflow at every scale; try --precision bf16 or fp32, or a lower --lr")

        last = stop.asked or step == settings["steps"]
        is_best = False
        if heldout and (last or step % settings["eval_every"] == 0):
            losses = heldout_losses(model, encoded, heldout, stand_in, micro)
            ratio = scale_ratio(adapter, features, heldout)
            folder.log(step=step, heldout=losses, rms_ratio=ratio)
            folder.write_samples(step, sample_answers(model, encoded, heldout))
            is_best = best is None or losses["real"] < best
            best = losses["real"] if is_best else best
            shown = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            bar.say(f"step {step}: held-out loss {shown}; tokens at {ratio:.2f} of the embeddings' RMS")
            if still_blind(step, losses):
                bar.say(
                    "still blind: another picture's features do as well. Look whether the captions fit the pictures, "
                    "try a higher --lr, or an adapter that reads patches (--adapter mlp)"
                )
        if last or is_best or step % settings["save_every"] == 0 or time.monotonic() - saved_at > SAVE_SECONDS:
            save(step, is_best)
            saved_at = time.monotonic()
        if last:
            break
    bar.close()

    # 8. What came of it.
    if weights_sha256(lm.model) != frozen:
        raise RunError("the frozen language model's weights changed, which must never happen; please report it")
    if step < settings["steps"]:
        print(f"stopped after step {step}; go on with: python train.py --resume {folder.path}")
    else:
        print(f"done: {folder.path}; the language model is unchanged. Next: python eval.py --run {folder.path}")


def given(options: Options) -> dict:
    """The settings given as flags, in the plain types that config.toml holds."""
    values = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in ABOUT_THE_CALL}
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value is not None
    }


def new_settings(options: Options) -> dict:
    """Flags over recipe over defaults; features of the demo's encoder bring the demo's recipe and language model."""
    from adapters.projectors import find_projector
    from shards.read import FeatureSet
    from training.recipe import read_recipe
    from training.settings import newest_features, settle

    flags = given(options)
    names = {field.name for field in fields(options)} - ABOUT_THE_CALL
    recipe = read_recipe(options.recipe, names, options.adapter) if options.recipe else {}
    settings = settle(flags, recipe)
    if "features" not in settings:
        settings["features"] = str(newest_features(Path("features"), find_projector(settings["adapter"])[0].kind))
    if "lm" not in settings:
        if FeatureSet(settings["features"]).manifest["encoder"]["name"] != "demo":
            raise RunError(
                "--lm is missing: which language model is to read these features? For a 24 GB GPU, for instance "
                "HuggingFaceTB/SmolLM2-360M-Instruct (0.7 GB), Qwen/Qwen3-4B-Instruct-2507 (8 GB) or "
                "mistralai/Mistral-7B-Instruct-v0.3 (15 GB); or a folder with a transformers model"
            )
        print("recipe: demo, because these features come from the demo's encoder")
        demo = read_recipe("demo", names, settings["adapter"])
        settings = settle(flags, demo | recipe) | {"features": settings["features"]}
    return settings


def run_path(options: Options, spec: str) -> Path:
    """runs/NAME, or when no name is given one made of the date and the adapter that isn't taken."""
    if options.name:
        if Path(options.name).name != options.name or options.name.startswith("."):
            raise RunError(f"--name {options.name!r} must be a plain folder name")
        return Path("runs") / options.name
    stem = f"{time.strftime('%Y-%m-%d')}-{spec}"
    return next(path for i in count(1) if not (path := Path("runs") / (stem if i == 1 else f"{stem}-{i}")).exists())


def sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


if __name__ == "__main__":
    run(main)
