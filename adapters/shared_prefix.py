"""Texts with a shared prefix: one pass over the prefix for all of them.

Several captions or questions about one image differ only after the image. Their prefix is laid out once, with each
text's suffix behind it. A suffix attends to the prefix and itself, never to another suffix, and its position ids
continue the prefix's, so every text is computed as it would be alone, and an image's tokens are paid for once. Groups
of prefix and suffixes are packed into rows, and don't attend to one another either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.prompting.segments import Segment
from periscope.adapters.splice import embed_at, length_of
from periscope.errors import AdapterError

SHARING_PAYS = 0.8  # share when that takes fewer positions than this fraction of the padded batch
SHARED_LAYERS = {"full_attention", "sliding_attention"}


class PrefixGroup(NamedTuple):
    """Texts, by index, that share `prefix`; `suffixes` are what follows in each, in the same order."""

    texts: list[int]
    prefix: list[Segment]
    suffixes: list[list[Segment]]


@dataclass
class SharedPrefixBatch:
    """A batch of packed groups.

    - `inputs_embeds`: `(rows, length, hidden_size)` in the model's dtype.
    - `attention_mask`: `(rows, 1, length, before + length)`, added to attention scores; or one for each kind of layer,
      by name. `before` is the length of a cached prefix.
    - `position_ids`: `(rows, length)` int64.
    - `keep`: `(rows, length)` bool, positions whose logits are needed.
    - `predicted_by`, `labels`: `(targets,)` int64. For each target, text by text: the index among the kept positions of
      the one that predicts it, and its id.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor | dict[str, torch.Tensor]
    position_ids: torch.Tensor
    keep: torch.Tensor
    predicted_by: torch.Tensor
    labels: torch.Tensor


def can_share(lm: LanguageModel) -> bool:
    """Whether this model can share prefixes: full or sliding-window attention in every layer, any mask, given position
    ids. A state-space model has no mask that could separate the suffixes.
    """
    config = lm.model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    takes_any_mask = lm.model.config._attn_implementation in ("sdpa", "eager")
    return bool(lm.family.tested) and not lm.family.recurrent and takes_any_mask and kinds <= SHARED_LAYERS


def group_by_prefix(texts: Sequence[Sequence[Segment]]) -> list[PrefixGroup]:
    """Group the texts that are the same up to their last image; what they have in common after it joins the prefix. A
    text without an image is a group of its own.
    """
    same: dict[tuple[Segment | int, ...], list[int]] = {}
    for number, text in enumerate(texts):
        cut = max((i + 1 for i, segment in enumerate(text) if segment.slot), default=0)
        same.setdefault(tuple(text[:cut]) or (number,), []).append(number)
    groups = []
    for key, numbers in same.items():
        cut = len(key) if isinstance(key[0], Segment) else 0
        prefix, suffixes = list(texts[numbers[0]][:cut]), [list(texts[number][cut:]) for number in numbers]
        first = [suffix[0] if suffix else Segment() for suffix in suffixes]
        if len(numbers) > 1 and len({segment.target for segment in first}) == 1:
            common = common_prefix([segment.ids for segment in first])
            prefix += [Segment(ids=common, target=first[0].target)] if common else []
            suffixes = [
                [Segment(ids=suffix[0].ids[len(common) :], target=suffix[0].target), *suffix[1:]] for suffix in suffixes
            ]
        groups.append(PrefixGroup(numbers, prefix, suffixes))
    return groups


def common_prefix(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest common prefix of all rows."""
    low, high = min(rows), max(rows)
    return low[: next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(map(len, rows)))]


def sharing_pays(texts: Sequence[Sequence[Segment]], groups: Sequence[PrefixGroup], tokens: Mapping[str, int]) -> bool:
    """Whether the groups take enough fewer positions than `texts` padded to one length. `tokens`: vectors per slot."""
    padded = len(texts) * max(length_of(text, tokens) for text in texts)
    return sum(_length(group, tokens) for group in groups) < SHARING_PAYS * padded


def _length(group: PrefixGroup, tokens: Mapping[str, int]) -> int:
    return length_of(group.prefix, tokens) + sum(length_of(suffix, tokens) for suffix in group.suffixes)


def pack_shared_prefix(
    lm: LanguageModel,
    texts: Sequence[Sequence[Segment]],
    groups: Sequence[PrefixGroup],
    slots: Mapping[str, torch.Tensor],
    before: int = 0,
) -> SharedPrefixBatch:
    """Pack groups into rows as long as the longest of them, first-fit decreasing. `slots` as in `splice`; `before` is
    the length of a cached prefix that every text begins with and `texts` leave out.

    Raises AdapterError as `splice` does.
    """
    tokens = {name: len(vectors) for name, vectors in slots.items()}
    lengths = [_length(group, tokens) for group in groups]
    longest = max(lengths)
    used: list[int] = []
    pieces: list[tuple[Segment, int]] = []  # segments with their places in the flat batch
    spans = []  # (group, branch: 0 for the prefix, place, length, first position id)
    targets: dict[int, list[tuple[int, int]]] = {}  # text -> (place that predicts it, id)
    for number in sorted(range(len(groups)), key=lambda number: -lengths[number]):
        row = next((row for row, full in enumerate(used) if full + lengths[number] <= longest), len(used))
        used += [0] if row == len(used) else []
        start, group = row * longest + used[row], groups[number]
        prefix = length_of(group.prefix, tokens)
        pieces += _placed(group.prefix, start, tokens)
        spans.append((number, 0, start, prefix, before))
        place = start + prefix
        for branch, (text, suffix) in enumerate(zip(group.texts, group.suffixes, strict=True), 1):
            length = length_of(suffix, tokens)
            pieces += _placed(suffix, place, tokens)
            spans.append((number, branch, place, length, before + prefix))
            path = [*range(start, start + prefix), *range(place, place + length)]
            targets[text] = _targets([*group.prefix, *suffix], path, tokens)
            if not targets[text]:
                raise AdapterError("a text has no words to learn: its answer is empty")
            place += length
        used[row] = place - row * longest
    size = len(used) * longest
    groups_at, branches_at, positions_at = (np.full(size, value) for value in (-1, 0, 0))
    for number, branch, place, length, first in spans:
        groups_at[place : place + length], branches_at[place : place + length] = number, branch
        positions_at[place : place + length] = np.arange(first, first + length)
    in_order = [pair for text in range(len(texts)) for pair in targets[text]]
    places, predicted_by = np.unique(np.array([place for place, _ in in_order]), return_inverse=True)
    keep = np.zeros(size, bool)
    keep[places] = True

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values).to(lm.device)

    def rows(values: np.ndarray) -> torch.Tensor:
        return tensor(values).view(len(used), longest)

    position_ids = rows(positions_at)
    mask = _masks(lm, rows(groups_at), rows(branches_at), position_ids, before)
    embeds = embed_at(lm, pieces, slots, size).view(len(used), longest, -1)
    labels = np.array([token for _, token in in_order])
    return SharedPrefixBatch(embeds, mask, position_ids, rows(keep), tensor(predicted_by).view(-1), tensor(labels))


def _placed(segments: Sequence[Segment], place: int, tokens: Mapping[str, int]) -> list[tuple[Segment, int]]:
    placed = []
    for segment in segments:
        placed.append((segment, place))
        place += length_of([segment], tokens)
    return placed


def _targets(segments: Sequence[Segment], path: Sequence[int], tokens: Mapping[str, int]) -> list[tuple[int, int]]:
    """(place that predicts it, id) of each target of a text whose tokens are at the places `path`."""
    targets, position = [], 0
    for segment in segments:
        if segment.target:
            targets += [(path[position + i - 1], token) for i, token in enumerate(segment.ids)]
        position += length_of([segment], tokens)
    return targets


def causal_masks(lm: LanguageModel, length: int, before: int) -> torch.Tensor | dict[str, torch.Tensor]:
    """The additive attention masks of rows of `length` tokens behind a cached prefix of `before`, for any number of
    rows: `(1, 1, length, before + length)`, or one for each kind of layer.

    transformers would make a boolean one for every row, which each layer's attention turns into numbers and keeps.
    """
    same = torch.zeros(1, length, dtype=torch.long, device=lm.device)
    return _masks(lm, same, same, torch.arange(before, before + length, device=lm.device)[None], before)


def _masks(
    lm: LanguageModel, group: torch.Tensor, branch: torch.Tensor, positions: torch.Tensor, before: int
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The additive attention masks: a token attends to its group's prefix and its own branch, causally, and to the
    `before` tokens of a cached prefix; in layers with a sliding window, only within the window. Padding attends to
    itself, so that no row is empty.
    """
    config = lm.model.config.get_text_config()
    order = torch.arange(group.shape[1], device=group.device)
    visible = (group[:, :, None] == group[:, None]) & (order[:, None] >= order)
    visible &= (branch[:, None] == 0) | (branch[:, :, None] == branch[:, None])
    visible = functional.pad(visible, (before, 0), value=True)
    keys = torch.cat([torch.arange(before, device=group.device).expand(len(group), -1), positions], 1)

    def additive(visible: torch.Tensor) -> torch.Tensor:
        hidden = torch.finfo(lm.dtype).min
        return torch.zeros(visible.shape, dtype=lm.dtype, device=visible.device).masked_fill(~visible, hidden)[:, None]

    kinds, window = set(getattr(config, "layer_types", None) or ()), getattr(config, "sliding_window", None)
    if not window or kinds == {"full_attention"}:
        return additive(visible)
    near = visible & (positions[:, :, None] - keys[:, None] < window)
    return {"full_attention": additive(visible), "sliding_attention": additive(near)} if kinds else additive(near)
