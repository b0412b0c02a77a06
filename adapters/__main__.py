"""Adapters from and for other programs: python -m adapters import-epalm|export-prompt|merge-lora."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from periscope.adapters.lm.files.find import find_model
from periscope.errors import AdapterError


def import_epalm(
    file: Path, /, lm: str, features: Path, out: Path, inject_layers: tuple[int, int] | None = None
) -> None:
    """Make an adapter folder from a checkpoint that eP-ALM released.

    Args:
        file: The .pth file. No code in it is run.
        lm: The language model it was trained with: OPT, a folder or a hub id.
        features: A feature set of its encoder, made with --kinds layers; the adapter records that encoder.
        out: The adapter folder, which must not exist.
        inject_layers: First injected layer and the one after the last (eP-ALM's rule).
    """
    _check(file, out, lm, features)
    from periscope.adapters.io.import_epalm import import_epalm

    import_epalm(file, lm, features, out, inject_layers)


def import_mamba_ssm(folder: Path, /, out: Path, tokenizer: str = "", chat: Literal["", "zephyr"] = "") -> None:
    """Make a folder that transformers reads of a language model in mamba_ssm's format, such as Cobra's.

    Args:
        folder: The model's files, config.json and pytorch_model.bin. No code in them is run.
        out: The new folder, which must not exist; --lm takes it.
        tokenizer: The tokenizer's folder or hub id (the model's own, or else EleutherAI/gpt-neox-20b).
        chat: The chat template to give the tokenizer; zephyr for xiuyul/mamba-2.8b-zephyr, which brings none.
    """
    _check(folder, out)
    from periscope.adapters.io.import_mamba import import_mamba_ssm

    import_mamba_ssm(folder, out, tokenizer, chat)


def _importer(system: str) -> Callable[..., None]:
    def read(file: Path, /, lm: str, features: Path, out: Path) -> None:
        """Make an adapter folder from a projector that another system released.

        Args:
            file: The checkpoint, such as mm_projector.bin or a .safetensors. No code in it is run.
            lm: The language model it was trained with, a folder or a hub id.
            features: A feature set made by its encoder; the adapter records that encoder.
            out: The adapter folder, which must not exist.
        """
        _check(file, out, lm, features)
        from periscope.adapters.io.import_projector import import_projector

        import_projector(system, file, lm, features, out)

    return read


import_llava = _importer("llava")
import_llava_pretrain = _importer("llava-pretrain")  # captions, as in LLaVA's first stage
import_prismatic, import_cobra = _importer("prismatic"), _importer("cobra")
import_mapl, import_clipcap, import_limber = _importer("mapl"), _importer("clipcap"), _importer("limber")


def _check(source: Path, out: Path, lm: str = "", features: Path | None = None) -> None:
    """Raise AdapterError for what isn't there, and where `out` exists; before torch is imported, which is slow."""
    if not source.exists():
        raise AdapterError(f"{source}: there is no such file or folder")
    if features and not (features / "manifest.json").is_file():
        raise AdapterError(f"{features} is no feature set: it has no manifest.json that says what it holds")
    if out.exists():
        raise AdapterError(f"{out} exists, and nothing is overwritten; choose another --out")
    if lm:
        find_model(lm)


def main() -> None:
    """Run the tool that is named first."""
    import tyro

    from periscope.exports.__main__ import merged, prompt

    tools: dict[str, Any] = {"import-epalm": import_epalm, "export-prompt": prompt, "merge-lora": merged}
    tyro.extras.subcommand_cli_from_dict(tools, description=__doc__)


if __name__ == "__main__":
    from periscope.console import run

    run(main)
