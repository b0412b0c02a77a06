"""eP-ALM's released checkpoints: a `.pth` of its trainer in, the tensors of an adapter of ours out.

https://github.com/mshukor/eP-ALM (MIT) saves a dict of `model`, `optimizer`, `config` and numbers, where `model` holds
what was trained: `connector.0` ... (one linear map per encoder block, the earliest first, or one for all) and
`prompt_module.prefix_embedding`, an embedding, alone or followed by Linear, tanh, Linear. A `.pth` is a program for
Python's unpickler; here torch's own restricted one reads it, which knows tensors and plain containers and runs nothing.
"""

import _codecs
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from periscope.adapters.lm.injection import injection_into
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.model import Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Template
from periscope.errors import AdapterError

BLOCKS = 6
ANSWER_MARK = "</a>"  # stands between question and answer; a token that eP-ALM adds to OPT's tokenizer
# The captioning checkpoints keep their best score as a numpy number; newer numpy calls the same function another name.
NUMBERS = [
    (numpy._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (numpy._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    numpy.dtype,
    *(type(numpy.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64")),
    _codecs.encode,
]


@dataclass(frozen=True)
class EpalmCheckpoint:
    """What a checkpoint holds, in fp32: `maps`, pairs of a weight `(layer_size, width)` and a bias `(layer_size)`, and
    `prompt` `(length, embedding width)`, which went through its MLP where it has one, or None.
    """

    maps: list[tuple[torch.Tensor, torch.Tensor]]
    prompt: torch.Tensor | None

    @property
    def width(self) -> int:
        """The encoder's."""
        return self.maps[0][0].shape[1]

    @property
    def layer_size(self) -> int:
        return self.maps[0][0].shape[0]


def read_released(path: Path) -> EpalmCheckpoint:
    """Read a `.pth` of eP-ALM's trainer, or its `model` alone.

    Raises AdapterError for a file that isn't there, that isn't such a checkpoint, or that would run code.
    """
    try:
        with torch.serialization.safe_globals(NUMBERS):
            whole = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise AdapterError(f"{path} isn't there") from None
    except Exception as error:  # a damaged file fails in torch's unpickler in as many ways as there are bytes
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it asks for {asked[1]}, which is no tensor and isn't run" if asked else str(error).partition("\n")[0]
        raise AdapterError(f"{path} isn't read: {why}") from None
    state = whole.get("model", whole) if isinstance(whole, dict) else None
    if not isinstance(state, dict):
        raise AdapterError(f"{path} is no checkpoint of eP-ALM: it holds no weights by name")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    known = re.compile(r"connector\.\d+\.(weight|bias)|prompt_module\.prefix_embedding\.\d\.(weight|bias)")
    strange = [key for key, value in state.items() if not known.fullmatch(key) or not isinstance(value, torch.Tensor)]
    if strange or "connector.0.weight" not in state:
        shown = f"{strange[0]!r} isn't in one" if strange else "it has no connector.0.weight"
        raise AdapterError(f"{path} is no checkpoint of eP-ALM as it was released: {shown}")
    state = {key: value.float() for key, value in state.items()}
    try:
        count = len([key for key in state if key.startswith("connector.") and key.endswith(".weight")])
        maps = [(state[f"connector.{i}.weight"], state[f"connector.{i}.bias"]) for i in range(count)]
        if len({weight.shape for weight, _ in maps}) > 1 or any(
            bias.shape != weight.shape[:1] for weight, bias in maps
        ):
            raise AdapterError(f"{path} is damaged: its linear maps don't fit each other")
        return EpalmCheckpoint(maps, _folded(state, "prompt_module.prefix_embedding"))
    except (KeyError, RuntimeError) as error:
        raise AdapterError(f"{path} is damaged: {error}") from None


def _folded(state: dict[str, torch.Tensor], name: str) -> torch.Tensor | None:
    """The soft prompt as plain vectors: the embedding, or what Linear, tanh, Linear make of it."""
    prompt = state.get(f"{name}.0.weight")
    if prompt is None or f"{name}.1.weight" not in state:
        return prompt
    first, second = ((state[f"{name}.{i}.weight"], state[f"{name}.{i}.bias"]) for i in (1, 3))
    return torch.nn.functional.linear(torch.tanh(torch.nn.functional.linear(prompt, *first)), *second)


def import_released(
    released: EpalmCheckpoint, lm: LanguageModel, bounds: tuple[int, ...] = ()
) -> tuple[Adapter, Template]:
    """The adapter of a checkpoint, in the released code's form (`compat`), and the prompt form it was trained with.

    `bounds`: the first injected layer and the first that no longer is, by eP-ALM's rule where there are none.
    Raises AdapterError when the language model has another width, and for a number of maps that is neither 1 nor 6.
    """
    found = (released.layer_size, lm.hidden_size if released.prompt is None else released.prompt.shape[1])
    if found != (lm.layer_size, lm.hidden_size):
        raise AdapterError(
            f"this checkpoint is for layers of width {found[0]} and word embeddings of width {found[1]}; "
            f"{lm.name} has {lm.layer_size} and {lm.hidden_size}"
        )
    if len(released.maps) not in (1, BLOCKS):
        raise AdapterError(f"this checkpoint has {len(released.maps)} linear maps; eP-ALM has {BLOCKS}, or 1 for all")
    spec = "epalm" if len(released.maps) == BLOCKS else "epalm-shared"
    features = FeatureShape("layers", BLOCKS, released.width)
    where = injection_into(lm, BLOCKS, bounds, compat=True)
    length = 0 if released.prompt is None else len(released.prompt)
    adapter = Adapter(spec, features, lm.hidden_size, lm.embedding_rms, length, injection=where)
    with torch.no_grad():
        for module, (weight, bias) in zip(adapter.projector.maps, released.maps, strict=True):
            module.weight.copy_(weight)
            module.bias.copy_(bias)
        if length:
            adapter.soft_prompt.vectors.copy_(released.prompt / adapter.soft_prompt.scale)
    if not all(math.isfinite(parameter.sum().item()) for parameter in adapter.parameters()):
        raise AdapterError("this checkpoint holds numbers that aren't finite")
    marked = ANSWER_MARK in lm.tokenizer.get_vocab()
    question = "{}?" + ANSWER_MARK if marked else "{}?"
    return adapter, Template(style="plain", delimiters=("", ""), question=question, soft_prompt="first")
