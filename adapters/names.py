"""What names of adapters and of language models mean, as far as that can be told before torch is imported."""

import ast
import difflib
import importlib
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from periscope.errors import AdapterError
from periscope.paths import expanded

PROJECT = Path(__file__).resolve().parents[1]
CONFIG, WEIGHTS, CARD = "adapter.json", "adapter.safetensors", "README.md"  # files of an adapter folder
LORA, LORA_CONFIG, LORA_WEIGHTS = "lora", "adapter_config.json", "adapter_model.safetensors"  # its folder of LoRA
GGUF = ".gguf"
HUB_START = r"(?:hf:|https?:/+(?:www\.)?(?:huggingface|hf)\.co/)"
HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
TRAINABLE = ("auto", "mixed", "bf16", "fp32")  # precisions of --train-lm
RuntimeName = Literal["pytorch", "llama.cpp"]  # what computes a language model that answers
# Names that people use -> the Hub's.
BARE_NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-xl": "openai-community/gpt2-xl",
    "opt-350m": "facebook/opt-350m",
    "SmolLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "SmolLM2-360M-Instruct": "HuggingFaceTB/SmolLM2-360M-Instruct",
}


def find_spec(spec: str, patterns: Collection[str]) -> tuple[str, dict[str, int]]:
    """The pattern of a projector's spec (`linear`, `mlp{tokens}`), and its integer by name.

    The whole spec is looked up first, then name and integer. Raises AdapterError for an unknown one, with the nearest
    known names.
    """
    if spec in patterns:
        return spec, {}
    match = re.fullmatch(r"(.*?)(\d+)", spec)
    if match:
        for pattern in patterns:
            name, _, integer = pattern.rstrip("}").partition("{")
            if integer and name == match[1] and int(match[2]) > 0:
                return pattern, {integer: int(match[2])}
    letters = re.sub(r"\d+$", "", spec)
    stems = [re.sub(r"\{.*\}", "", pattern) for pattern in patterns if ("{" in pattern) == (letters != spec)]
    near = difflib.get_close_matches(letters, stems, n=2, cutoff=0.4)
    hint = f"; did you mean {' or '.join(stem + spec[len(letters) :] for stem in near)}?" if near else ""
    raise AdapterError(
        f"unknown adapter {spec!r}{hint} (known: {', '.join(known_specs(patterns))}; K is a whole number above 0)"
    )


def known_specs(patterns: Collection[str]) -> list[str]:
    """The specs, with the integer shown as K: `linear`, `mlpK`, ..."""
    return sorted(re.sub(r"\{.*\}", "K", pattern) for pattern in patterns)


def kind_of(spec: str) -> str:
    """The kind of features that an adapter reads. Raises AdapterError for one that no file of adapters/projectors/
    declares.

    Reads these files without running them, because importing them imports torch. Where that is done already, or where
    one of them declares a projector by other than plain strings, the registry has the last word.
    """
    registry = sys.modules.get("periscope.adapters.projectors")
    kinds: dict[str, str] | None = {}
    for file in () if registry else sorted((PROJECT / "adapters" / "projectors").glob("*.py")):
        declared = declared_projectors(file.read_text(encoding="utf-8"))
        kinds = None if kinds is None or declared is None else kinds | declared
    if registry or kinds is None:
        registry = registry or importlib.import_module("periscope.adapters.projectors")
        return registry.find_projector(spec)[0].kind
    return kinds[find_spec(spec, kinds)[0]]


def declared_projectors(source: str) -> dict[str, str] | None:
    """Pattern -> kind of the projectors that a file's decorators declare; None where that can't be read off."""
    try:
        classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    except SyntaxError:
        return None
    found: dict[str, str] = {}
    for call in (decorator for each in classes for decorator in each.decorator_list):
        if not isinstance(call, ast.Call) or ast.unparse(call.func).rpartition(".")[2] != "projector":
            continue
        given = dict(zip(("pattern", "reads"), call.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        values = [value.value for value in given.values() if isinstance(value, ast.Constant)]
        if len(given) != 2 or not all(isinstance(value, str) for value in values) or len(values) != 2:
            return None
        pattern, kind = (ast.literal_eval(given[name]) for name in ("pattern", "reads"))
        found[pattern] = kind
    return found


def parse_lora(text: str) -> tuple[int, int]:
    """Rank and alpha from `--lora`, as in "r=64,alpha=16". Without alpha it equals the rank, a scale of 1.

    Raises AdapterError for anything else.
    """
    match = re.fullmatch(r"\s*r=(\d+)\s*(?:,\s*alpha=(\d+)\s*)?", text)
    if not match or int(match[1]) < 1 or int(match[2] or 1) < 1:
        raise AdapterError(f"--lora {text!r} isn't of the form r=64,alpha=16, both above 0")
    return int(match[1]), int(match[2] or match[1])


def check_language_model(name: str, flag: str = "--lm") -> None:
    """Raise AdapterError for what is neither there, as given or inside the project, nor of the form of a hub id. flag:
    the option that named it.
    """
    if any(place.exists() for place in (expanded(name), PROJECT / name)):
        return
    if name.lower().endswith(GGUF):
        raise AdapterError(f"{flag} {name}: there is no such file")
    if not HUB_ID.fullmatch(name) or "--" in name or ".." in name:
        full = f", such as {BARE_NAMES[name]}" if name in BARE_NAMES else ""
        raise AdapterError(f"{flag} {name} is neither a folder that exists nor a hub id of the form owner/name{full}")


def is_hub_adapter(name: str) -> bool:
    """Whether a name is meant for an adapter on the Hub: of the form owner/name, where no folder is called `owner`, and
    not runs/NAME, which may be looked for before anything was trained here.
    """
    return is_hub_id(name) and not name.startswith("runs/") and not Path(name).parent.exists()


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name and is no local path."""
    return (
        name.count("/") == 1
        and ":" not in name
        and not name.startswith((".", "/", "~"))
        and all(name.split("/"))
        and not Path(name).exists()
    )


def hub_name(name: str) -> str:
    """The owner/name in an address of the Hub, hf://owner/name or https://huggingface.co/owner/name, whose slashes
    pathlib may have joined; "" where it is none.
    """
    match = re.fullmatch(rf"{HUB_START}/*(?:models/)?([^/@]+/[^/@]+?)(?:@[^/]+)?/*", name, re.I)
    return match[1] if match else ""
