"""Import of eP-ALM's released checkpoints: from a `.pth` of its trainer to an adapter.

https://github.com/mshukor/eP-ALM (MIT) saves a dict of `model`, `optimizer`, `config` and numbers. `model` holds what
was trained: `connector.0` ... (one linear map per encoder block, the earliest first, or one for all) and
`prompt_module.prefix_embedding`, an embedding, alone or followed by Linear, tanh, Linear. A `.pth` is a program for
Python's unpickler; torch's restricted one reads it here, which knows tensors and plain containers and runs nothing.
"""

import _codecs
import json
import math
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy
import torch

from periscope.adapters.io.checkpoint import save_adapter, write_folder
from periscope.adapters.lm.injection import injection_into
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.projectors.layers import LayerLinears
from periscope.adapters.prompting.template import Template
from periscope.errors import AdapterError
from periscope.weights import load_released

BLOCKS = 6
ANSWER_MARK = "</a>"  # stands between question and answer; a token that eP-ALM adds to OPT's tokenizer
# Captioning checkpoints store their best score as a numpy number, whose function has another name in newer numpy.
numpy_multiarray: Any = import_module("numpy._core.multiarray")
NUMPY_SCALARS: list[Any] = [
    (numpy_multiarray.scalar, "numpy.core.multiarray.scalar"),
    (numpy_multiarray.scalar, "numpy._core.multiarray.scalar"),
    numpy.dtype,
    *(type(numpy.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64")),
    _codecs.encode,
]


def import_epalm(file: Path, lm: str, features: Path, out: Path, inject_layers: tuple[int, int] | None = None) -> None:
    """Make an adapter folder from a checkpoint that eP-ALM released: `periscope import epalm`.

    Raises AdapterError for a file that isn't such a checkpoint, and for one that doesn't fit `features` or `lm`.
    """
    released = read_released(file)
    try:
        manifest = json.loads((features / "manifest.json").read_text(encoding="utf-8"))
        kinds = manifest["features"]
    except (OSError, ValueError, KeyError, TypeError):
        raise AdapterError(f"{features} is no feature set: it has no manifest.json that says what it holds") from None
    if "layers" not in kinds:
        raise AdapterError(f"{features} holds {', '.join(kinds)}, not layers; encode again with --kinds layers")
    model = load_language_model(lm, "cpu", "fp16")
    adapter, template = import_released(released, model, inject_layers or ())
    shape = [adapter.features.tokens, adapter.features.width]
    if kinds["layers"]["shape"] != shape:
        raise AdapterError(
            f"this checkpoint reads {shape[0]} layers of width {shape[1]}, and {features} holds "
            f"{' x '.join(map(str, kinds['layers']['shape']))}; encode with the encoder it was trained with"
        )
    about = {
        "modality": manifest["modality"],
        "encoder": manifest["encoder"],
        "storage": kinds["layers"],
        "language_model": {"name": model.name, "identity": model.identity()},
        "template": template,
        "training": {"imported from": f"eP-ALM's {file.name}"},
    }
    write_folder(out, lambda folder: save_adapter(folder, adapter, about))
    injection, parameters = adapter.injection, sum(parameter.numel() for parameter in adapter.parameters())
    assert injection is not None
    print(
        f"{out} is ready: {adapter.spec} with {parameters:,} parameters, injected into layers {injection.start} to "
        f"{injection.end - 1}, with a soft prompt of {adapter.soft_tokens}, as in the released code"
    )
    if ANSWER_MARK not in template.question:
        print(
            f"for captions only: this language model's tokenizer lacks {ANSWER_MARK}, which the checkpoints for "
            "questions need (docs/epalm.md)"
        )


@dataclass(frozen=True)
class EpalmCheckpoint:
    """The tensors of a checkpoint in fp32.

    `maps` are pairs of a weight `(layer_size, width)` and a bias `(layer_size,)`; `prompt` is `(length, hidden_size)`,
    with its MLP applied if it has one, or None.
    """

    maps: list[tuple[torch.Tensor, torch.Tensor]]
    prompt: torch.Tensor | None

    @property
    def width(self) -> int:
        """Width of the encoder's features."""
        return self.maps[0][0].shape[1]

    @property
    def layer_size(self) -> int:
        """Width of the language model's layers."""
        return self.maps[0][0].shape[0]


def read_released(path: Path) -> EpalmCheckpoint:
    """Read a `.pth` of eP-ALM's trainer, or its `model` alone.

    Raises AdapterError for a file that isn't there, that isn't such a checkpoint, or that would run code.
    """
    with torch.serialization.safe_globals(NUMPY_SCALARS):
        content = load_released(path, AdapterError)
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise AdapterError(f"{path} is no checkpoint of eP-ALM: it holds no weights by name")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    known = re.compile(r"connector\.\d+\.(weight|bias)|prompt_module\.prefix_embedding\.\d\.(weight|bias)")
    unknown = [key for key, value in state.items() if not known.fullmatch(key) or not isinstance(value, torch.Tensor)]
    if unknown or "connector.0.weight" not in state:
        reason = f"{unknown[0]!r} isn't in one" if unknown else "it has no connector.0.weight"
        raise AdapterError(f"{path} is no checkpoint of eP-ALM as it was released: {reason}")
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
    """The soft prompt as plain vectors: the embedding, passed through Linear, tanh, Linear if there."""
    prompt = state.get(f"{name}.0.weight")
    if prompt is None or f"{name}.1.weight" not in state:
        return prompt
    first, second = ((state[f"{name}.{i}.weight"], state[f"{name}.{i}.bias"]) for i in (1, 3))
    return torch.nn.functional.linear(torch.tanh(torch.nn.functional.linear(prompt, *first)), *second)


def import_released(
    released: EpalmCheckpoint, lm: LanguageModel, bounds: tuple[int, ...] = ()
) -> tuple[Adapter, Template]:
    """The adapter of a checkpoint, with `compat` injection as in the released code, and the template it was trained
    with.

    `bounds` are the first injected layer and the one after the last; empty for eP-ALM's rule. Raises AdapterError when
    the language model has another width, and for a number of maps other than 1 and 6.
    """
    widths = (released.layer_size, lm.hidden_size if released.prompt is None else released.prompt.shape[1])
    if widths != (lm.layer_size, lm.hidden_size):
        raise AdapterError(
            f"this checkpoint is for layers of width {widths[0]} and word embeddings of width {widths[1]}; "
            f"{lm.name} has {lm.layer_size} and {lm.hidden_size}"
        )
    if len(released.maps) not in (1, BLOCKS):
        raise AdapterError(f"this checkpoint has {len(released.maps)} linear maps; eP-ALM has {BLOCKS}, or 1 for all")
    spec = "epalm" if len(released.maps) == BLOCKS else "epalm-shared"
    features = FeatureShape("layers", BLOCKS, released.width)
    injection = injection_into(lm, BLOCKS, bounds, compat=True)
    length = 0 if released.prompt is None else len(released.prompt)
    adapter = Adapter(spec, features, lm.hidden_size, lm.embedding_rms, length, injection=injection)
    with torch.no_grad():
        maps = cast(LayerLinears, adapter.projector).maps
        for module, (weight, bias) in zip(maps, released.maps, strict=True):
            cast(torch.Tensor, module.weight).copy_(weight)
            cast(torch.Tensor, module.bias).copy_(bias)
        if adapter.soft_prompt is not None and released.prompt is not None:
            adapter.soft_prompt.vectors.copy_(released.prompt / adapter.soft_prompt.scale)
    if not all(math.isfinite(parameter.sum().item()) for parameter in adapter.parameters()):
        raise AdapterError("this checkpoint holds numbers that aren't finite")
    marked = ANSWER_MARK in lm.tokenizer.get_vocab()
    question = "{}?" + ANSWER_MARK if marked else "{}?"
    return adapter, Template(style="plain", delimiters=("", ""), question=question, soft_prompt="first")
