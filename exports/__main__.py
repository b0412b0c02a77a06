"""Ways out for a trained adapter: python -m periscope.exports gguf|llava|check ADAPTER --out FOLDER"""

from pathlib import Path
from typing import Literal


def gguf(
    adapter: Path,
    /,
    out: Path,
    encoder: str | None = None,
    lm: str | None = None,
    precision: Literal["f16", "f32"] = "f16",
) -> None:
    """Write a multimodal projector for llama.cpp: gguf RUN_OR_ADAPTER --out FOLDER

    Args:
        adapter: An adapter folder, or a run, whose last checkpoint is taken.
        out: The folder to write, which must not exist.
        encoder: Where the encoder is now, if it has moved.
        lm: Where the language model is now, if it has moved; only its tokenizer is read.
        precision: Of the matrices.
    """
    from periscope.exports.gguf import MMPROJ, export_gguf
    from periscope.inference import adapter_folder

    _say(export_gguf(adapter_folder(adapter), out, encoder, lm, precision))
    print(f"{out} is ready: {MMPROJ} for llama.cpp; its README.md says how to use it")


def llava(
    adapter: Path,
    /,
    out: Path,
    encoder: str | None = None,
    lm: str | None = None,
    precision: Literal["fp32", "fp16", "bf16"] | None = None,
) -> None:
    """Write a LLaVA model for transformers, language model included: llava RUN_OR_ADAPTER --out FOLDER

    Args:
        adapter: An adapter folder, or a run, whose last checkpoint is taken.
        out: The folder to write, which must not exist.
        encoder: Where the encoder is now, if it has moved.
        lm: Where the language model is now, if it has moved.
        precision: How the weights are stored; by default as the language model's are.
    """
    from periscope.exports.llava import export_llava
    from periscope.inference import adapter_folder

    _say(export_llava(adapter_folder(adapter), out, encoder, lm, precision))
    print(f"{out} is ready: LlavaForConditionalGeneration.from_pretrained({str(out)!r}), or transformers serve {out}")


def check(adapter: Path, /) -> None:
    """Say which ways out are open for an adapter, and what closes the others: check RUN_OR_ADAPTER

    Args:
        adapter: An adapter folder, or a run, whose last checkpoint is taken.
    """
    from periscope.adapters.io.schema import read_adapter_config
    from periscope.exports.check import exits
    from periscope.inference import adapter_folder

    for way in exits(read_adapter_config(adapter_folder(adapter))):
        print(way)


def _say(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}")


def main() -> None:
    """Dispatch to the tool that is named first."""
    import tyro

    tyro.extras.subcommand_cli_from_dict({"gguf": gguf, "llava": llava, "check": check}, description=__doc__)


if __name__ == "__main__":
    from periscope.console import run

    run(main)
