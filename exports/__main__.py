"""Exports of a trained adapter: python -m periscope.exports gguf|llava|embeds|check ADAPTER ..."""

from pathlib import Path
from typing import Literal

from periscope.exports.ways import LLAMA_CPP, TRANSFORMERS, VLLM


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
    folder = _source(adapter, out, LLAMA_CPP)
    from periscope.exports.gguf import MMPROJ, export_gguf

    _say(export_gguf(folder, out, encoder, lm, precision))
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
    folder = _source(adapter, out, TRANSFORMERS)
    from periscope.exports.llava import export_llava

    _say(export_llava(folder, out, encoder, lm, precision))
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
    from periscope.places import check_media, check_models, find_adapters

    folder = _source(adapter, out, VLLM)
    adapters = find_adapters(str(folder))
    check_media(media, "", [config.modality for _, config in adapters])
    moved: dict[str | None, str] = {None: encoder} if encoder else {}
    check_models(adapters, lm, encoders=moved)
    import json

    from periscope.atomic import replace_bytes
    from periscope.exports.embeds import completion_request
    from periscope.inference import load

    loaded = load(folder, "cpu", lm=lm, encoder=encoder)
    request = completion_request(loaded, list(media), question, model, max_tokens)
    replace_bytes(out, json.dumps(request).encode())
    print(
        f"{out} is ready: curl -H 'Content-Type: application/json' --data @{out} http://localhost:8000/v1/completions"
    )


def check(adapter: Path, /) -> None:
    """Say what an adapter can be exported to, and what rules out the rest: check RUN_OR_ADAPTER

    Args:
        adapter: An adapter folder, or a run, whose last checkpoint is taken.
    """
    from periscope.exports.check import exits
    from periscope.places import one_adapter

    for way in exits(one_adapter(str(adapter))[1]):
        print(way)


def prompt(adapter: Path, /, out: Path) -> None:
    """Write a soft prompt trained alone as PEFT's prompt-tuning folder: prompt RUN_OR_ADAPTER --out FOLDER

    Args:
        adapter: An adapter folder, or a run, whose last checkpoint is used.
        out: Folder for PEFT, which must not exist.
    """
    folder = _source(adapter, out)
    from periscope.adapters.io.export_peft import export_prompt

    export_prompt(folder, out)


def merged(
    adapter: Path, /, out: Path, lm: str | None = None, precision: Literal["fp32", "fp16", "bf16"] | None = None
) -> None:
    """Write a language model with its adapter's LoRA merged, and the adapter for it: merged RUN --out FOLDER

    Args:
        adapter: A stage 2 run, whose last checkpoint is used, or an adapter folder.
        out: Folder for the model, which must not exist; the adapter goes into adapter/ in it.
        lm: Where the language model is now, if it has moved.
        precision: Dtype of the merged weights (the language model's own).
    """
    from periscope.adapters.io.schema import refuse_no_merge
    from periscope.places import check_models, one_adapter

    folder = _source(adapter, out)
    found = one_adapter(str(folder))
    refuse_no_merge(out, found[1].lora)
    check_models([found], lm)
    from periscope.adapters.io.merge_lora import merge_lora

    merge_lora(folder, out, lm, precision)


def _source(adapter: Path, out: Path, way: str = "") -> Path:
    """The folder of the adapter to export. Raises RunError or AdapterError where there is none or several, where `out`
    exists, and where it can't be exported to the program `way`; before torch is imported, which takes seconds.
    """
    from periscope.errors import AdapterError
    from periscope.exports.check import exit_named
    from periscope.places import one_adapter

    folder, config = one_adapter(str(adapter))
    if out.exists():
        raise AdapterError(f"{out} exists, and nothing is overwritten; choose another --out")
    if way and (reasons := exit_named(config, way).reasons):
        raise AdapterError(f"{adapter} can't be exported to {way}: {'; '.join(reasons)}")
    return folder


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
