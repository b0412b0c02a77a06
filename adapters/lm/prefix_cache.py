"""Keys and values of a prefix that many texts begin with, computed in one pass and read by every row of a batch.

What a causal model makes of a prefix doesn't depend on what follows it. The frozen model's keys and values for a system
prompt and a role header are therefore the same in every text of every step; prompt caching reuses them when a model
answers (Gim et al. 2023, arXiv 2311.04934), and so can training, where they are constants.
"""

import inspect
from collections import OrderedDict
from typing import Any

import torch
from torch.nn import functional
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from periscope.adapters.lm.families import family_of
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.selective_scan import start_next_scan_from

KEPT_TOKENS = 2048  # in all kept prefixes: most trainings have one, several feature sets or templates a few
ARGUMENTS = ("cache", "past_key_values", "cache_params")  # a forward pass's name for its cache, newest first


class PrefixCache(Cache):
    """What each layer keeps of a prefix of `length` tokens. A pass over the prefix fills it (`recording`); one over
    what follows reads it and leaves it as it is, so that a layer recomputed for its gradient finds what it found first.

    `place`, `(rows, keys)`: which of the keys each row of a batch reads; None for all. A prefix that is `behind`
    another one reads that while it is recorded.
    """

    recording = True

    def __init__(self, model: PreTrainedModel, length: int, behind: "PrefixCache | None" = None):
        config = model.config.get_text_config()
        self.length = length
        self.place: torch.Tensor | None = None
        if family_of(model.config).recurrent:
            layers: list[Any] = [StateLayer(self) for _ in range(config.num_hidden_layers)]
        else:
            before: list[Any] = list(behind.layers) if behind else [None] * config.num_hidden_layers
            layers = [KeysLayer(self, layer) for layer in before]
        super().__init__(layers=layers)


class KeysLayer(DynamicLayer):
    """Keys and values `(rows, heads, prefix, width)`, one row but while words are recorded. `behind`: those of the
    prefix before this one.
    """

    def __init__(self, owner: PrefixCache, behind: "KeysLayer | None" = None):
        super().__init__()
        self.owner, self.behind = owner, behind

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        read: KeysLayer | None = self
        if self.owner.recording:
            self.hold(key_states, value_states)
            read = self.behind
        if read is None:
            return key_states, value_states
        keys, values = read.expanded(len(key_states))
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)

    def hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep these keys and values."""
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def expanded(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the prefix for so many rows, `(rows, heads, prefix, width)`, without a copy where all rows
        read the same.
        """
        assert self.keys is not None and self.values is not None
        if self.owner.place is None:
            return self.keys.expand(rows, -1, -1, -1), self.values.expand(rows, -1, -1, -1)
        keys, values = (held[0][:, self.owner.place].transpose(0, 1) for held in (self.keys, self.values))
        return keys, values


class StateLayer(LinearAttentionLayer):
    """A state-space layer's last inputs to its convolution `(1, width, kernel)` and the state `(1, ...)` after them."""

    def __init__(self, owner: PrefixCache):
        super().__init__()
        self.owner = owner

    def update_conv_state(
        self, conv_states: torch.Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: object
    ) -> torch.Tensor:
        if self.owner.recording:
            kernel = conv_kernel_size or conv_states.shape[-1]
            self.conv = functional.pad(conv_states, (kernel, 0))[..., -kernel:]
            return conv_states
        start_next_scan_from(self.state)
        return torch.cat([self.conv.expand(len(conv_states), -1, -1), conv_states], -1)

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, state_idx: int = 0, **kwargs: object
    ) -> torch.Tensor:
        if self.owner.recording:
            self.state = recurrent_states
        return recurrent_states


def cache_argument(model: PreTrainedModel) -> str:
    """What the model's forward pass calls its cache."""
    parameters = inspect.signature(type(model).forward).parameters
    return next(name for name in ARGUMENTS if name in parameters)


def prefix_cache(model: PreTrainedModel, embeds: torch.Tensor) -> PrefixCache:
    """The cache of a prefix `(1, length, hidden_size)`, for passes over what follows it in any number of rows."""
    cache = PrefixCache(model, embeds.shape[1])
    arguments: dict[str, Any] = {cache_argument(model): cache}
    model(inputs_embeds=embeds, logits_to_keep=1, use_cache=True, **arguments)
    cache.recording = False
    return cache


def words_cache(
    model: PreTrainedModel, embeds: torch.Tensor, leading: PrefixCache | None, place: torch.Tensor, **inputs: Any
) -> PrefixCache:
    """The cache of words behind `leading`, of which each row of a batch reads those at `place` `(rows, keys)`: among
    the leading keys, and then those of all words, each padded to one length.

    embeds: `(words, length, hidden_size)` · inputs: the mask and the position ids of a pass over them behind `leading`.
    """
    before = leading.length if leading else 0
    recorded = PrefixCache(model, before + embeds.shape[1], leading)
    arguments: dict[str, Any] = {cache_argument(model): recorded}
    model(inputs_embeds=embeds, logits_to_keep=1, use_cache=True, **arguments, **inputs)
    cache = PrefixCache(model, place.shape[1])
    for number, (layer, into) in enumerate(zip(recorded.layers, cache.layers, strict=True)):
        assert isinstance(layer, KeysLayer) and isinstance(into, KeysLayer)
        held = [_in_one_row(of) for of in (layer.keys, layer.values)]
        if leading:
            first = leading.layers[number]
            assert isinstance(first, KeysLayer)
            held = [torch.cat(pair, -2) for pair in zip(first.expanded(1), held, strict=True)]
        into.hold(*held)
    cache.recording, cache.place = False, place
    return cache


def _in_one_row(states: torch.Tensor | None) -> torch.Tensor:
    """`(rows, heads, length, width)` to `(1, heads, rows * length, width)`."""
    assert states is not None
    return states.transpose(0, 1).flatten(1, 2)[None]


def growing_cache(prefix: PrefixCache, rows: int) -> DynamicCache:
    """A cache of keys and values for generation in `rows` rows that each begin with `prefix`."""
    # Without a config every layer keeps all keys, those with a sliding window too: their mask hides the far ones.
    cache = DynamicCache()
    for number, layer in enumerate(prefix.layers):
        assert isinstance(layer, KeysLayer)
        keys, values = layer.expanded(rows)
        cache.update(keys, values, number)
    return cache


class PrefixCaches:
    """The caches of the prefixes last used with one language model.

    Those of a frozen model are constants, computed once and kept. With a LoRA, and of a model that is trained itself,
    each pass computes its own, with gradient where gradients are on.
    """

    def __init__(self, lm: LanguageModel):
        self.lm = lm
        self._kept: OrderedDict[tuple[object, ...], PrefixCache] = OrderedDict()

    def of(self, ids: tuple[int, ...]) -> PrefixCache:
        """The cache of a prefix of words."""
        if self.lm.changes:
            return self._compute(ids)
        # Weights that were changed in place, by merging a LoRA for instance, are another model's.
        versions = sum(parameter._version for parameter in self.lm.model.parameters())
        key = (ids, versions, self.lm.dtype, self.lm.device)
        cache = self._kept.pop(key, None)
        if cache is None:
            with torch.inference_mode(False), torch.no_grad():
                cache = self._compute(ids)
        if len(ids) <= KEPT_TOKENS:
            self._kept[key] = cache
        while sum(kept.length for kept in self._kept.values()) > KEPT_TOKENS:
            self._kept.popitem(last=False)
        return cache

    def _compute(self, ids: tuple[int, ...]) -> PrefixCache:
        return prefix_cache(self.lm.model, self.lm.embed(torch.tensor([ids], device=self.lm.device)))
