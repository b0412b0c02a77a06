"""Injection into inner layers (eP-ALM): an image enters the frozen model as one position whose hidden state is
replaced.

Shukor et al. 2023, arXiv 2303.11403; https://github.com/mshukor/eP-ALM. The released code inserts the position at the
first injected layer, which breaks attention masks, rotary embeddings and KV caches of models other than its own copy of
OPT. Here the position is in the sequence from the start: position ids don't count it and no token attends to it before
the first injected layer, so the hidden states below are those of the text alone. A state-space model has no mask to
hide a position with, so there it is inserted at the first injected layer and removed after the last layer.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.recorded import Injection
from periscope.errors import AdapterError

LAYERS_PER_BLOCK = 2  # language model layers that one encoder block feeds
POSITION_TABLES = ("embed_positions", "wpe")  # learned positions of OPT and GPT-2; rotary embeddings have no table
ATTENTION = ("sdpa", "eager")  # implementations that take any mask


@dataclass(frozen=True)
class LayerMap:
    """Which layers (0-based, `start` <= layer < `end`) get which of `blocks` encoder blocks.

    Every block feeds equally many layers where there are enough of them.
    """

    start: int
    end: int
    blocks: int

    def block_of(self, layer: int) -> int | None:
        """The encoder block that feeds a layer, 0 the earliest, or None."""
        if not self.start <= layer < self.end:
            return None
        return (layer - self.start) * self.blocks // (self.end - self.start)


def map_layers(depth: int, blocks: int, start: int | None = None, end: int | None = None) -> LayerMap:
    """Choose the injected layers by eP-ALM's rule: two per block, ending with the last layer but one.

    For 6 blocks that is 19 to 30 of 32 layers and 11 to 22 of 24; a small model gets as many as it has. Raises
    AdapterError for bounds outside the model.
    """
    end = depth - 1 if end is None else end
    start = max(min(1, end - 1), end - LAYERS_PER_BLOCK * blocks) if start is None else start
    if not 0 <= start < end <= depth:
        raise AdapterError(f"--inject-layers {start} {end} don't lie in a model of {depth} layers (0 to {depth})")
    return LayerMap(start, end, blocks)


def injection_into(lm: LanguageModel, blocks: int, bounds: Sequence[int] = (), compat: bool = False) -> Injection:
    """Where the vectors of `blocks` encoder blocks go in a language model.

    `bounds` are (start, end); empty for eP-ALM's rule. Raises AdapterError as `map_layers` does.
    """
    layers = map_layers(lm.depth, blocks, *bounds)
    return Injection(lm.layer_size, layers.start, layers.end, compat)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """A language model's stack of layers. Raises AdapterError when there is no plain one."""
    depth = model.config.get_text_config().num_hidden_layers
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if not stacks:
        raise AdapterError(f"{type(model).__name__} has no plain stack of {depth} layers")
    return stacks[0]


@dataclass(frozen=True)
class InjectedVectors:
    """What is injected: `vectors` `(media, blocks, layer_size)`, the i-th into sequence `rows[i]` of the batch at
    position `positions[i]`, both `(media,)`.

    `unpositioned` `(batch, length)` bool marks tokens that get no learned position; None when all do. `before` is the
    length of a cached prefix that stands before the batch's first position.
    """

    vectors: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    unpositioned: torch.Tensor | None = None
    before: int = 0

    def repeated(self, batch: int, texts: int) -> "InjectedVectors":
        """For a batch in which generation repeated each of `texts` sequences, as beam search does."""
        times = batch // texts
        if times == 1:
            return self
        offsets = torch.arange(times, device=self.rows.device)
        return InjectedVectors(
            self.vectors.repeat_interleave(times, 0),
            (self.rows[:, None] * times + offsets).flatten(),
            self.positions.repeat_interleave(times),
            None if self.unpositioned is None else self.unpositioned.repeat_interleave(times, 0),
            self.before,
        )


class Injector:
    """Injects vectors into the layers of one language model.

    `compat` reproduces the released code: the injected position attends to the whole sequence, later words and padding
    included, and passes on what it saw to the layers above. A later word then changes the logits before it, which leaks
    labels into training; the mode exists for checkpoints trained that way, and for attention models only. The injected
    position then comes first in the sequence, and it and the soft prompt have no position ids.

    `inserts` is True for state-space models, whose sequence grows by one position inside the injected layers.
    """

    def __init__(self, lm: LanguageModel, layers: LayerMap, compat: bool = False):
        self.layers, self.map, self.compat = decoder_layers(lm.model), layers, compat
        tables = (module for name, module in lm.model.named_modules() if name.endswith(POSITION_TABLES))
        self.position_table = next(tables, None)
        self._argument_names = [list(inspect.signature(type(layer).forward).parameters)[1:] for layer in self.layers]
        self.inserts = lm.family.recurrent
        if self.inserts and compat:
            raise AdapterError(f"epalm_compat is for attention models; {lm.name} has no attention mask")
        attention = lm.model.config._attn_implementation
        if not self.inserts and attention not in ATTENTION:
            raise AdapterError(f"injection needs attention by {' or '.join(ATTENTION)}, and {lm.name} has {attention}")

    @contextmanager
    def inject(self, injected: InjectedVectors, texts: int, length: int) -> Iterator[None]:
        """Inside this context, forward passes over `texts` sequences of `length` positions get the injected vectors,
        and tokens generated after them attend to them.
        """
        enter = self._insert if self.inserts else self._replace
        handles = [
            layer.register_forward_pre_hook(partial(enter, injected, texts, length, number), with_kwargs=True)
            for number, layer in enumerate(self.layers)
        ]
        if self.inserts:
            handles.append(self.layers[-1].register_forward_hook(partial(self._remove, injected, texts, length)))
        if injected.unpositioned is not None and self.position_table is not None:
            handles.append(self.position_table.register_forward_hook(partial(self._unposition, injected, texts)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _replace(
        self, injected: InjectedVectors, texts: int, length: int, number: int, _: nn.Module, args: tuple, kwargs: dict
    ) -> tuple:
        """Attention: replace the position's hidden state in the injected layers; unmask it from the first one on."""
        kwargs = {**dict(zip(self._argument_names[number], args, strict=False)), **kwargs}
        hidden = kwargs.pop("hidden_states")
        injected = injected.repeated(len(hidden), texts)
        rows, positions, keys = injected.rows, injected.positions, injected.positions + injected.before
        prefill = hidden.shape[1] == length
        mask = kwargs.get("attention_mask")
        if mask is None or mask.ndim != 4:
            raise AdapterError(
                "injection needs layers that all take an attention mask; some layers of this model don't"
            )
        mask = mask.expand(len(hidden), *mask.shape[1:]).clone()
        visible = True if mask.dtype == torch.bool else 0.0
        if number < self.map.start:
            if prefill:  # a position that attends to nothing at all would become NaN
                mask[rows, :, positions, keys] = visible
        elif not prefill:
            mask[rows, :, :, keys] = visible
        else:
            queries = torch.arange(length, device=mask.device)
            column = mask[rows, :, :, keys]
            mask[rows, :, :, keys] = column.masked_fill(queries >= positions[:, None, None], visible)
            if self.compat:
                mask[rows, :, positions] = visible
        kwargs = {**kwargs, "attention_mask": mask}
        block = self.map.block_of(number)
        if block is not None and prefill:
            hidden = hidden.index_put((rows, positions), injected.vectors[:, block].to(hidden))
        return (hidden,), kwargs

    def _insert(
        self, injected: InjectedVectors, texts: int, length: int, number: int, _: nn.Module, args: tuple, kwargs: dict
    ) -> tuple | None:
        """State space: from the first injected layer on, the sequence is one position longer."""
        hidden = args[0] if args else kwargs["hidden_states"]
        injected = injected.repeated(len(hidden), texts)
        where = (injected.rows, injected.positions)
        if number < self.map.start or hidden.shape[1] < length:
            return None
        if hidden.shape[1] == length:
            hidden = _with_position(hidden, injected.positions)
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.shape[1] == length:
            mask = _with_position(mask[..., None], injected.positions)[..., 0].index_put(where, mask.new_ones(()))
        block = self.map.block_of(number)
        if block is not None:
            hidden = hidden.index_put(where, injected.vectors[:, block].to(hidden))
        kwargs = {**kwargs, **({"attention_mask": mask} if "attention_mask" in kwargs else {})}
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    @staticmethod
    def _unposition(
        injected: InjectedVectors, texts: int, _: nn.Module, args: tuple, output: torch.Tensor
    ) -> torch.Tensor:
        """Zero the learned positions `(batch, length, width)` of unpositioned tokens, when the whole prompt is read."""
        unpositioned = injected.repeated(len(output), texts).unpositioned
        if unpositioned is None or output.shape[1] != unpositioned.shape[1]:
            return output
        return output.masked_fill(unpositioned[..., None], 0)

    @staticmethod
    def _remove(
        injected: InjectedVectors, texts: int, length: int, _: nn.Module, args: tuple, output: torch.Tensor
    ) -> torch.Tensor:
        """State space: the last layer's output without the inserted position."""
        if output.shape[1] != length + 1:
            return output
        injected = injected.repeated(len(output), texts)
        kept = torch.arange(length, device=output.device).expand(len(output), -1)
        kept = kept + (kept >= injected.positions[:, None])
        return output.gather(1, kept[..., None].expand(-1, -1, output.shape[-1]))


def _with_position(values: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """`(batch, length, width)` with one more position at `position` `(batch,)`, filled with whatever comes after it."""
    sources = torch.arange(values.shape[1] + 1, device=values.device).expand(len(values), -1)
    sources = (sources - (sources > position[:, None]).long()).clamp(max=values.shape[1] - 1)
    return values.gather(1, sources[..., None].expand(-1, -1, values.shape[-1]))
