"""Adapters from and for other programs: python -m adapters import-epalm|export-prompt|merge-lora."""

import json
from pathlib import Path
from typing import Literal


def import_epalm(
    file: Path, /, lm: str, features: Path, out: Path, inject_layers: tuple[int, int] | None = None
) -> None:
    """Make an adapter folder of a checkpoint that eP-ALM released.

    Args:
        file: The .pth. No code in it is run.
        lm: The language model it was trained with: OPT, a folder or a hub id.
        features: A feature set of its encoder, made with --kinds layers; the adapter records that encoder.
        out: The adapter folder, which must not exist.
        inject_layers: The first layer that is given the medium and the first that no longer is; without it eP-ALM's.
    """
    from periscope.adapters.io.checkpoint import save_adapter, write_folder
    from periscope.adapters.io.import_epalm import ANSWER_MARK, import_released, read_released
    from periscope.adapters.lm.language_model import load_language_model
    from periscope.errors import AdapterError

    released = read_released(file)
    try:
        manifest = json.loads((features / "manifest.json").read_text(encoding="utf-8"))
        held = manifest["features"]
    except (OSError, ValueError, KeyError, TypeError):
        raise AdapterError(f"{features} is no feature set: it has no manifest.json that says what it holds") from None
    if "layers" not in held:
        raise AdapterError(f"{features} holds {', '.join(held)}, not layers; encode again with --kinds layers")
    model = load_language_model(lm, "cpu", "fp16")
    adapter, template = import_released(released, model, inject_layers or ())
    shape = [adapter.features.tokens, adapter.features.width]
    if held["layers"]["shape"] != shape:
        raise AdapterError(
            f"this checkpoint reads {shape[0]} layers of width {shape[1]}, and {features} holds "
            f"{' x '.join(map(str, held['layers']['shape']))}; encode with the encoder it was trained with"
        )
    about = {
        "modality": manifest["modality"],
        "encoder": manifest["encoder"],
        "storage": held["layers"],
        "language_model": {"name": model.name, "identity": model.identity()},
        "template": template.to_dict(),
        "training": {"imported from": f"eP-ALM's {file.name}"},
    }
    write_folder(out, lambda folder: save_adapter(folder, adapter, about))
    where, numbers = adapter.injection, sum(parameter.numel() for parameter in adapter.parameters())
    print(
        f"{out} is ready: {adapter.spec} of {numbers:,} numbers, given to layers {where['start']} to "
        f"{where['end'] - 1}, with a soft prompt of {adapter.soft_tokens}, in the released code's form"
    )
    if ANSWER_MARK not in template.question:
        print(
            f"for captions only: this language model's tokenizer lacks {ANSWER_MARK}, which the checkpoints for "
            "questions need (docs/epalm.md)"
        )


def export_prompt(adapter: Path, /, out: Path) -> None:
    """Write a soft prompt that stands alone as PEFT's prompt-tuning folder: export-prompt RUN_OR_ADAPTER --out FOLDER

    Args:
        adapter: An adapter folder, or a run, whose last checkpoint is taken.
        out: The folder for PEFT, which must not exist.
    """
    from periscope.adapters.io.checkpoint import load_adapter, write_folder
    from periscope.adapters.io.export_peft import save_peft_prompt
    from periscope.adapters.prompting.prompt import Template

    loaded, config = load_adapter(_last(adapter))
    template, name = Template.from_dict(config["template"]), config["language_model"]["name"]
    write_folder(out, lambda folder: save_peft_prompt(folder, loaded, template, name))
    print(f"{out} is ready: {loaded.soft_tokens} vectors for peft.PeftModel.from_pretrained(model, {str(out)!r})")


def merge(
    adapter: Path, /, out: Path, lm: str | None = None, precision: Literal["fp32", "fp16", "bf16"] | None = None
) -> None:
    """Write a language model with its adapter's LoRA merged, and the adapter for it: merge-lora RUN --out FOLDER

    Args:
        adapter: A run of stage 2, whose last checkpoint is taken, or an adapter folder.
        out: The model's folder, which must not exist; the adapter goes into adapter/ in it.
        lm: Where the language model is now, if it has moved.
        precision: How the merged weights are stored; without it as the language model's own are.
    """
    from periscope.adapters.lm.merge import merge_lora

    merge_lora(_last(adapter), out, lm, precision)


def _last(path: Path) -> Path:
    """The adapter folder at `path`, or the last checkpoint's when that is a run. Raises AdapterError for a run of
    several adapters.
    """
    from periscope.adapters.io.checkpoint import CONFIG
    from periscope.errors import AdapterError

    last = path / "last"
    if (path / CONFIG).is_file() or not last.is_file():
        return path
    step = path / "steps" / last.read_text().strip()
    if several := sorted(step.glob("adapter-*")):
        raise AdapterError(f"{path} holds {len(several)} adapters; name the folder of one, as {several[0]}")
    return step / "adapter"


def main() -> None:
    """Dispatch to the tool that is named first."""
    import tyro

    tools = {"import-epalm": import_epalm, "export-prompt": export_prompt, "merge-lora": merge}
    tyro.extras.subcommand_cli_from_dict(tools, description=__doc__)


if __name__ == "__main__":
    from periscope.console import run

    run(main)
