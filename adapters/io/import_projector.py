"""Import of projectors that other systems released: from their checkpoint to an adapter.

| system | what its file holds | becomes |
| --- | --- | --- |
| LLaVA | `mm_projector.bin`: `model.mm_projector.0` and `.2`, or one linear map (LLaVA v1) | `mlp`, `linear` |
| Prismatic, Cobra | `model` -> `projector` -> `projector.0`, `.2` and `.4` | `fusedmlp`, `mlp` |
| MAPL | the mapper alone: `down`, `transformer`, `const`, `up` | `maplK` |
| ClipCap | the whole model: `clip_project` and `gpt` | `clipcapK`, `clipcap-transformerK` |
| LiMBeR | one linear map | `linear` |

Such files are programs for Python's unpickler; torch's restricted one reads them, which knows tensors and plain
containers and runs nothing. What else a file holds, such as a language model, is left out.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from periscope.adapters.io.checkpoint import save_adapter, write_folder
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import Adapter
from periscope.adapters.projectors import FeatureShape, find_projector
from periscope.adapters.prompting.template import Template
from periscope.errors import AdapterError
from periscope.weights import load_released

State = dict[str, torch.Tensor]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)
BARE = ("", "")
# The prompts that the projectors were trained with; `--init` and a recipe change them.
TEMPLATES = {
    "llava": Template(
        delimiters=BARE, preamble=VICUNA, question="USER: <image>\n{} ASSISTANT: ", between="", requests="question",
        caption_prompt="Describe the image concisely.",
    ),
    "llava-pretrain": Template(delimiters=BARE, captions="all", end="\n"),
    "cobra": Template(delimiters=BARE, question="In: {}\nOut: ", own_space=True),
    "prismatic": Template(delimiters=BARE, question="In: {}\nOut: "),
    "mapl": Template(delimiters=BARE, eos=False),
    "clipcap": Template(delimiters=BARE, eos=False),
    "limber": Template(delimiters=BARE),
}  # fmt: skip
BESIDE = re.compile(r"(gpt|llm_backbone|language_model|lm_head|model\.(layers|embed_tokens|norm|vision_tower))\b")
MAPL = {"down": "first", "up": "last", "transformer": "mixer", "const": "queries"}
CLIPCAP = {
    "linear": "first",
    "prefix_const": "queries",
    "transformer.layers": "layers",
    "norm1": "norm_attention",
    "norm2": "norm_feed_forward",
    "attn.to_queries": "query",
    "attn.to_keys_values": "key_value",
    "attn.project": "out",
    "mlp.fc1": "feed_forward.0",
    "mlp.fc2": "feed_forward.2",
}


def import_projector(system: str, file: Path, lm: str, features: Path, out: Path) -> None:
    """Make an adapter folder `out` from the projector in `file`, with the prompt of `TEMPLATES[system]`.

    Raises AdapterError for a file that holds no such projector, and for one that doesn't fit `features` or `lm`.
    """
    state, beside = read_projector(file)
    manifest = _manifest(features)
    model = load_language_model(lm, "cpu", "fp32")
    adapter = adapter_of(named_as_here(state, file), manifest["features"], model, features)
    about = {
        "modality": manifest["modality"],
        "encoder": manifest["encoder"],
        "storage": manifest["features"][adapter.features.kind],
        "language_model": {"name": model.name, "identity": model.identity()},
        "template": TEMPLATES[system],
        "training": {"imported from": f"{system}'s {file.name}"},
    }
    write_folder(out, lambda folder: save_adapter(folder, adapter, about))
    parameters = sum(parameter.numel() for parameter in adapter.parameters())
    print(f"{out} is ready: {adapter.spec} with {parameters:,} parameters, {adapter.tokens} tokens per medium")
    if beside:
        print(f"note: {file} also holds {beside}, which was left out: if it was tuned, --lm must be the tuned one")


def read_projector(path: Path) -> tuple[State, str]:
    """The tensors of a checkpoint that belong to a projector, in fp32 without what stands before their names; and the
    first name of a language model's or an encoder's among the others, "" without any.

    Raises AdapterError for a file that isn't there, that would run code, or that holds nothing of a projector's.
    """
    tensors = dict(_flat(load_released(path, AdapterError)))
    inside = re.compile(r"(?<![^.])(?:mm_projector|projector|clip_project|proj|mapper)\.")
    found: State = {}
    for name, tensor in tensors.items():
        if places := list(inside.finditer(name)):
            found[name[places[-1].end() :]] = tensor.float()
    beside = next((name for name in tensors if not inside.search(name) and BESIDE.search(name)), "")
    if not found and not beside:
        found = {name: tensor.float() for name, tensor in tensors.items()}
    if not found:
        raise AdapterError(f"{path} holds no projector: its tensors are {', '.join(list(tensors)[:3]) or 'none'}")
    return found, beside


def _flat(content: object, name: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(content, torch.Tensor):
        return [(name.removeprefix("."), content)]
    if not isinstance(content, Mapping):
        return []
    return [pair for key, value in content.items() for pair in _flat(value, f"{name}.{key}")]


@dataclass(frozen=True)
class ReleasedProjector:
    """A projector by its spec and its tensors' names here. "clipcap" lacks its number, which the language model's width
    tells. inner, layers: as in `build_projector`.
    """

    spec: str
    state: State
    inner: int = 0
    layers: int = 0


def named_as_here(state: State, path: Path) -> ReleasedProjector:
    """The projector that a checkpoint's tensors form, with the names they have here. Raises AdapterError for other
    names than those of the released systems.
    """
    modules = {name.rpartition(".")[0] for name in state}
    rows = {name: len(tensor) for name, tensor in state.items()}
    for forms, spec in (
        ({"0": "first", "2": "last"}, "mlp"),
        ({"0": "first", "2": "middle", "4": "last"}, "fusedmlp"),
        ({"": "last"}, "linear"),
        ({"model.0": "first", "model.2": "last"}, "clipcap"),
    ):
        if modules == forms.keys():
            renamed = {f"{forms[module]}.{part}": state[f"{module}.{part}".lstrip(".")] for module in modules
                       for part in ("weight", "bias") if f"{module}.{part}".lstrip(".") in state}  # fmt: skip
            inner = 0 if spec == "linear" else len(renamed["first.weight"])
            return ReleasedProjector(spec, renamed, inner)
    if "const" in state and "down.weight" in state:
        renamed = {}
        for name, tensor in state.items():
            head, dot, rest = name.partition(".")
            renamed[MAPL.get(head, head) + dot + rest] = tensor
        return ReleasedProjector(f"mapl{rows['const']}", renamed, rows["down.weight"], _layers(state))
    if "prefix_const" in state and "linear.weight" in state:
        renamed = dict(state)
        for theirs, ours in CLIPCAP.items():
            renamed = {re.sub(rf"(^|\.){re.escape(theirs)}\b", rf"\g<1>{ours}", name): each
                       for name, each in renamed.items()}  # fmt: skip
        return ReleasedProjector(f"clipcap-transformer{rows['prefix_const']}", renamed, 0, _layers(state))
    raise AdapterError(
        f"{path} holds a projector of another form than LLaVA's, Prismatic's, MAPL's, ClipCap's or LiMBeR's: its "
        f"tensors are {', '.join(sorted(state)[:4])}"
    )


def _layers(state: State) -> int:
    numbers = [int(found[1]) for name in state if (found := re.search(r"\blayers\.(\d{1,4})\.", name))]
    return 1 + max(numbers, default=-1)


def adapter_of(released: ReleasedProjector, kinds: Mapping[str, Mapping], lm: LanguageModel, features: Path) -> Adapter:
    """The adapter of a released projector. Raises AdapterError when it reads other features than the set has, or makes
    vectors of another width than the language model's.
    """
    spec = released.spec
    if spec == "clipcap":
        width = len(released.state["last.weight"])
        if width % lm.hidden_size:
            raise AdapterError(f"this projector makes {width} numbers, no multiple of {lm.name}'s {lm.hidden_size}")
        spec = f"clipcap{width // lm.hidden_size}"
    kind = find_projector(spec)[0].kind
    if kind not in kinds:
        raise AdapterError(f"{features} holds {', '.join(kinds)}, not {kind}; encode again with --kinds {kind}")
    shape = kinds[kind]["shape"]
    tokens, width = (1, shape[0]) if len(shape) == 1 else shape
    grid = kinds[kind].get("grid")
    held = FeatureShape(kind, tokens, width, tuple(grid) if grid else None)
    adapter = Adapter(
        spec, held, lm.hidden_size, lm.embedding_rms, output_norm=False, projector_hidden=released.inner,
        projector_layers=released.layers,
    )  # fmt: skip
    expected = {name: tuple(tensor.shape) for name, tensor in adapter.projector.state_dict().items()}
    for name, tensor in released.state.items():
        if expected.get(name) != tuple(tensor.shape):
            raise AdapterError(
                f"this {spec} has {name} of shape {tuple(tensor.shape)}; for {width} wide features of {features} and "
                f"{lm.hidden_size} wide words of {lm.name} it would be {expected.get(name)}"
            )
    if missing := sorted(expected.keys() - released.state.keys()):
        raise AdapterError(f"this {spec} lacks {missing[0]}")
    if broken := [name for name, tensor in released.state.items() if not tensor.isfinite().all()]:
        raise AdapterError(f"this checkpoint holds numbers that aren't finite, in {broken[0]}")
    adapter.projector.load_state_dict(released.state)
    return adapter


def _manifest(features: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((features / "manifest.json").read_text(encoding="utf-8"))
        return {name: manifest[name] for name in ("features", "modality", "encoder")}
    except (OSError, ValueError, KeyError, TypeError):
        raise AdapterError(f"{features} is no feature set: it has no manifest.json that says what it holds") from None
