"""Ways out for a trained adapter: python -m periscope.exports gguf|llava|embeds|check ADAPTER ..."""

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


def embeds(
    adapter: Path,
    media: tuple[Path, ...],
    /,
    out: Path,
    question: str | None = None,
    model: str = "",
    max_tokens: int = 64,
    encoder: str | None = None,
    lm: str | None = None,
) -> None:
    """Write a request for vLLM's /v1/completions: embeds RUN_OR_ADAPTER FILE ... --question TEXT --out FILE

    Args:
        adapter: An adapter folder, or a run, whose last checkpoint is taken.
        media: Images, sounds or clips.
        out: The .json file to write, which must not exist.
        question: About them; without it a caption is asked for.
        model: What vLLM calls the language model; by default as it was called in training.
        max_tokens: Of the answer.
        encoder: Where the encoder is now, if it has moved.
        lm: Where the language model is now, if it has moved.
    """
    import json

    from periscope.adapters.io.schema import read_adapter_config
    from periscope.atomic import replace_bytes
    from periscope.errors import AdapterError
    from periscope.exports.check import exit_named
    from periscope.exports.embeds import completion_request
    from periscope.exports.ways import VLLM
    from periscope.inference import adapter_folder, load

    if out.exists():
        raise AdapterError(f"{out} exists, and nothing is overwritten; choose another --out")
    if reasons := exit_named(read_adapter_config(adapter_folder(adapter)), VLLM).reasons:
        raise AdapterError(f"{adapter} can't be exported to {VLLM}: {'; '.join(reasons)}")
    loaded = load(adapter, "cpu", lm=lm, encoder=encoder)
    request = completion_request(loaded, list(media), question, model, max_tokens)
    replace_bytes(out, json.dumps(request).encode())
    print(
        f"{out} is ready: curl -H 'Content-Type: application/json' --data @{out} http://localhost:8000/v1/completions"
    )


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

    tyro.extras.subcommand_cli_from_dict(
        {"gguf": gguf, "llava": llava, "embeds": embeds, "check": check}, description=__doc__
    )


if __name__ == "__main__":
    from periscope.console import run

    run(main)
