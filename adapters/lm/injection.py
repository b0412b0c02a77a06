"""eP-ALM's connection: a medium enters inside the frozen model, as one row that several of its layers are given anew.

Shukor et al. 2023, arXiv 2303.11403; https://github.com/mshukor/eP-ALM. The released code puts the row into the
sequence at the first of these layers. With masks, rotary tables and caches made for one length, that breaks other
models than its own copy of OPT. Here the row is in the sequence from the start, where a text's positions don't count
it and no other row sees it before the first of these layers: the words' states below are those of the text alone. A
state-space model can't be made not to see a row, so there it really is put in, and taken out after the last layer.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from periscope.adapters.lm.language_model import LanguageModel
from periscope.errors import AdapterError

PER_BLOCK = 2  # layers that one encoder block feeds
POSITIONS = ("embed_positions", "wpe")  # tables of learned positions, by OPT's name and GPT-2's; rotary ones have none
MASKS = ("sdpa", "eager")


@dataclass(frozen=True)
class LayerMap:
    """Which layers (0-based, `start` <= layer < `end`) are given which of `blocks` encoder blocks.

    Every block feeds equally many layers where there are enough of them.
    """

    start: int
    end: int
    blocks: int

    def block_of(self, layer: int) -> int | None:
        """The block that feeds a layer, 0 the earliest, or None."""
        if not self.start <= layer < self.end:
            return None
        return (layer - self.start) * self.blocks // (self.end - self.start)


def map_layers(depth: int, blocks: int, start: int | None = None, end: int | None = None) -> LayerMap:
    """eP-ALM's rule: two layers a block, ending with the last layer but one; as many as there are in a small model.

    For 6 blocks that is 19 to 30 of 32 layers and 11 to 22 of 24. Raises AdapterError for bounds outside the model.
    """
    end = depth - 1 if end is None else end
    start = max(min(1, end - 1), end - PER_BLOCK * blocks) if start is None else start
    if not 0 <= start < end <= depth:
        raise AdapterError(f"--inject-layers {start} {end} don't lie in a model of {depth} layers (0 to {depth})")
    return LayerMap(start, end, blocks)


def injection_into(lm: LanguageModel, blocks: int, bounds: Sequence[int] = (), compat: bool = False) -> dict:
    """What an adapter records of where its media go: {"layer_size", "start", "end", "compat"}.

    `bounds` are (start, end), by eP-ALM's rule where there are none. Raises AdapterError as `map_layers`.
    """
    layers = map_layers(lm.depth, blocks, *bounds)
    return {"layer_size": lm.layer_size, "start": layers.start, "end": layers.end, "compat": compat}


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of a language model's layers. Raises AdapterError when there is no plain one."""
    depth = model.config.get_text_config().num_hidden_layers
    stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    if not stacks:
        raise AdapterError(f"{type(model).__name__} has no plain stack of {depth} layers to put a medium into")
    return stacks[0]


@dataclass(frozen=True)
class InjectedRows:
    """What goes in: `vectors` `(media, blocks, layer_size)`, for row `text[i]` of the batch at position `place[i]`.

    `placeless` `(batch, length)` marks rows that a table of positions adds nothing to (None: there are none).
    """

    vectors: torch.Tensor
    text: torch.Tensor
    place: torch.Tensor
    placeless: torch.Tensor | None = None

    def repeated(self, batch: int, of: int) -> "InjectedRows":
        """For a batch in which generation has repeated each of `of` texts, one after the other."""
        times = batch // of
        if times == 1:
            return self
        spread = torch.arange(times, device=self.text.device)
        return InjectedRows(
            self.vectors.repeat_interleave(times, 0),
            (self.text[:, None] * times + spread).flatten(),
            self.place.repeat_interleave(times),
            None if self.placeless is None else self.placeless.repeat_interleave(times, 0),
        )


class Injector:
    """Puts media into the layers of one language model.

    `compat` reproduces the released code: the row sees the whole sequence, words that come later and padding too, and
    hands what it saw to the layers above. So a later word changes what the model says before it, which leaks labels
    into training; it is there for checkpoints trained so, and attention models alone have it. There the row stands
    first in the sequence, and it and the soft prompt have no position.
    """

    def __init__(self, lm: LanguageModel, layers: LayerMap, compat: bool = False):
        self.layers, self.map, self.compat = decoder_layers(lm.model), layers, compat
        self.positions = next((part for name, part in lm.model.named_modules() if name.endswith(POSITIONS)), None)
        self._names = [list(inspect.signature(type(layer).forward).parameters)[1:] for layer in self.layers]
        self.inserts = lm.quirk.recurrent
        if self.inserts and compat:
            raise AdapterError(f"epalm_compat is for attention models; {lm.name} has no mask to open")
        attention = lm.model.config._attn_implementation
        if not self.inserts and attention not in MASKS:
            raise AdapterError(f"injection needs attention by {' or '.join(MASKS)}, and {lm.name} has {attention}")

    @contextmanager
    def inject(self, rows: InjectedRows, texts: int, length: int) -> Iterator[None]:
        """While the block runs, forward passes over `texts` sequences of `length` positions are given `rows`, and what
        is generated after them sees them.
        """
        enter = self._insert if self.inserts else self._open
        handles = [
            layer.register_forward_pre_hook(partial(enter, rows, texts, length, number), with_kwargs=True)
            for number, layer in enumerate(self.layers)
        ]
        if self.inserts:
            handles.append(self.layers[-1].register_forward_hook(partial(self._remove, rows, texts, length)))
        if rows.placeless is not None and self.positions is not None:
            handles.append(self.positions.register_forward_hook(partial(self._unplace, rows, texts)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _open(
        self, rows: InjectedRows, texts: int, length: int, number: int, _: nn.Module, given: tuple, named: dict
    ) -> tuple:
        """Attention: give the row at its layers, and open the mask for it from the first of these on."""
        named = {**dict(zip(self._names[number], given, strict=False)), **named}
        hidden = named.pop("hidden_states")
        rows = rows.repeated(len(hidden), texts)
        prefill = hidden.shape[1] == length
        mask = named.get("attention_mask")
        if mask is None or mask.ndim != 4:
            raise AdapterError(
                "injection needs layers that all take an attention mask; this model mixes other kinds in"
            )
        mask = mask.expand(len(hidden), *mask.shape[1:]).clone()
        seen = True if mask.dtype == torch.bool else 0.0
        if number < self.map.start:
            if prefill:  # a row that sees nothing at all would be no number
                mask[rows.text, :, rows.place, rows.place] = seen
        elif not prefill:
            mask[rows.text, :, :, rows.place] = seen
        else:
            queries = torch.arange(length, device=mask.device)
            column = mask[rows.text, :, :, rows.place]
            mask[rows.text, :, :, rows.place] = column.masked_fill(queries >= rows.place[:, None, None], seen)
            if self.compat:
                mask[rows.text, :, rows.place] = seen
        named = {**named, "attention_mask": mask}
        block = self.map.block_of(number)
        if block is not None and prefill:
            hidden = hidden.index_put((rows.text, rows.place), rows.vectors[:, block].to(hidden))
        return (hidden,), named

    def _insert(
        self, rows: InjectedRows, texts: int, length: int, number: int, _: nn.Module, given: tuple, named: dict
    ) -> tuple | None:
        """State space: from the first of its layers on, the sequence is one row longer."""
        hidden = given[0] if given else named["hidden_states"]
        rows = rows.repeated(len(hidden), texts)
        if number < self.map.start or hidden.shape[1] < length:
            return None
        if hidden.shape[1] == length:
            hidden = _with_row(hidden, rows.place)
        mask = named.get("attention_mask")
        if mask is not None and mask.shape[1] == length:
            mask = _with_row(mask[..., None], rows.place)[..., 0].index_put((rows.text, rows.place), mask.new_ones(()))
        block = self.map.block_of(number)
        if block is not None:
            hidden = hidden.index_put((rows.text, rows.place), rows.vectors[:, block].to(hidden))
        named = {**named, **({"attention_mask": mask} if "attention_mask" in named else {})}
        return ((hidden, *given[1:]), named) if given else (given, {**named, "hidden_states": hidden})

    @staticmethod
    def _unplace(rows: InjectedRows, texts: int, _: nn.Module, given: tuple, out: torch.Tensor) -> torch.Tensor:
        """Learned positions `(batch, length, width)` without those of `placeless` rows, when the whole is read."""
        placeless = rows.repeated(len(out), texts).placeless
        return out if out.shape[1] != placeless.shape[1] else out.masked_fill(placeless[..., None], 0)

    @staticmethod
    def _remove(
        rows: InjectedRows, texts: int, length: int, _: nn.Module, given: tuple, out: torch.Tensor
    ) -> torch.Tensor:
        if out.shape[1] != length + 1:
            return out
        rows = rows.repeated(len(out), texts)
        places = torch.arange(length, device=out.device).expand(len(out), -1)
        places = places + (places >= rows.place[:, None])
        return out.gather(1, places[..., None].expand(-1, -1, out.shape[-1]))


def _with_row(values: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """`(batch, length, width)` with one more position at `place` of each row, filled by whatever comes after it."""
    places = torch.arange(values.shape[1] + 1, device=values.device).expand(len(values), -1)
    places = (places - (places > place[:, None]).long()).clamp(max=values.shape[1] - 1)
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))
