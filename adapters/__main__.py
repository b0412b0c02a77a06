"""Adapters from and for other programs: python -m adapters import-epalm|export-prompt."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path


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
    from adapters import AdapterError
    from adapters.checkpoint import save_adapter
    from adapters.epalm_checkpoint import ANSWER_MARK, import_released, read_released
    from adapters.language_model import load_language_model

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
    _write(out, lambda folder: save_adapter(folder, adapter, about))
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
    from adapters.checkpoint import CONFIG, load_adapter
    from adapters.peft_prompt import save_peft_prompt
    from adapters.prompt import Template

    last = adapter / "last"
    if not (adapter / CONFIG).is_file() and last.is_file():
        adapter = adapter / "steps" / last.read_text().strip() / "adapter"
    loaded, config = load_adapter(adapter)
    template, name = Template.from_dict(config["template"]), config["language_model"]["name"]
    _write(out, lambda folder: save_peft_prompt(folder, loaded, template, name))
    print(f"{out} is ready: {loaded.soft_tokens} vectors for peft.PeftModel.from_pretrained(model, {str(out)!r})")


def _write(out: Path, write: Callable[[Path], None]) -> None:
    """Have a folder written under a temporary name, and rename it into place."""
    from adapters import AdapterError

    if out.exists():
        raise AdapterError(f"{out} exists, and nothing is overwritten; choose another --out")
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write(temporary)
        os.rename(temporary, out)
    except OSError as error:
        raise AdapterError(f"{out} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    """Dispatch to the tool that is named first."""
    import tyro

    tools = {"import-epalm": import_epalm, "export-prompt": export_prompt}
    tyro.extras.subcommand_cli_from_dict(tools, description=__doc__)


if __name__ == "__main__":
    from console import run

    run(main)
