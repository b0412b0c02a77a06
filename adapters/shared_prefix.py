"""Texts that begin alike share one pass over their beginning: a tree of segments in one row.

Several captions or questions about one picture differ only after the picture. Their common beginning, the stem, stands
once, and each text's rest, a branch, behind it. A branch sees the stem and itself, never another branch, and counts its
positions from the stem's end; so every text reads what it would read alone, and a picture's tokens are paid for once.
Stems with their branches are laid side by side in rows until these are full, and don't see one another either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.prompting.prompt import Segment
from periscope.adapters.splice import embed_at, length_of
from periscope.errors import AdapterError

WORTH = 0.8  # a tree is used when it takes fewer positions than this share of the padded batch's
SHARED_LAYERS = {"full_attention", "sliding_attention"}


class PrefixGroup(NamedTuple):
    """Texts (their numbers) that share `stem`; `rests` are what each has of its own, in the same order."""

    texts: list[int]
    stem: list[Segment]
    rests: list[list[Segment]]


@dataclass
class SharedPrefixBatch:
    """A batch as rows of stems and branches, driven by vectors.

    `inputs_embeds` `(rows, length, hidden_size)` in the model's dtype; `attention_mask` `(rows, 1, length, length)`,
    added to scores, or one for each kind of layer by its name; `position_ids` `(rows, length)`. `keep` `(rows, length)`
    bool: where logits are needed; `said` and `labels` `(targets,)`: for each target, text by text, which of the kept
    positions must say it, and its id.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor | dict[str, torch.Tensor]
    position_ids: torch.Tensor
    keep: torch.Tensor
    said: torch.Tensor
    labels: torch.Tensor


def can_share(lm: LanguageModel) -> bool:
    """Whether texts can share a row of this model: attention of the usual two kinds in every layer, which takes any
    mask, and positions that can be given. A state-space model has no mask that could part the branches.
    """
    config = lm.model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    plain = lm.model.config._attn_implementation in ("sdpa", "eager")
    return bool(lm.quirk.tested) and not lm.quirk.recurrent and plain and kinds <= SHARED_LAYERS


def group_by_prefix(texts: Sequence[Sequence[Segment]]) -> list[PrefixGroup]:
    """Put together the texts that are alike up to their last medium; what else they have in common after it belongs to
    the stem too. A text without a medium stands alone.
    """
    alike: dict[tuple, list[int]] = {}
    for number, text in enumerate(texts):
        cut = max((i + 1 for i, segment in enumerate(text) if segment.slot), default=0)
        alike.setdefault(tuple(text[:cut]) or (number,), []).append(number)
    groups = []
    for key, numbers in alike.items():
        cut = len(key) if isinstance(key[0], Segment) else 0
        stem, rests = list(texts[numbers[0]][:cut]), [list(texts[number][cut:]) for number in numbers]
        first = [rest[0] if rest else Segment() for rest in rests]
        if len(numbers) > 1 and len({segment.target for segment in first}) == 1:
            common = _common([segment.ids for segment in first])
            stem += [Segment(ids=common, target=first[0].target)] if common else []
            rests = [[Segment(ids=rest[0].ids[len(common) :], target=rest[0].target), *rest[1:]] for rest in rests]
        groups.append(PrefixGroup(numbers, stem, rests))
    return groups


def _common(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest beginning of all rows."""
    low, high = min(rows), max(rows)
    return low[: next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(map(len, rows)))]


def sharing_pays(texts: Sequence[Sequence[Segment]], groups: Sequence[PrefixGroup], tokens: Mapping[str, int]) -> bool:
    """Whether the groups take enough fewer positions than `texts` padded to one length; `tokens` of each slot."""
    padded = len(texts) * max(length_of(text, tokens) for text in texts)
    return sum(_length(one, tokens) for one in groups) < WORTH * padded


def _length(one: PrefixGroup, tokens: Mapping[str, int]) -> int:
    return length_of(one.stem, tokens) + sum(length_of(rest, tokens) for rest in one.rests)


def pack_shared_prefix(
    lm: LanguageModel,
    texts: Sequence[Sequence[Segment]],
    groups: Sequence[PrefixGroup],
    slots: Mapping[str, torch.Tensor],
) -> SharedPrefixBatch:
    """Lay out groups in rows as long as the longest of them. `slots` as in `adapters.splice.splice`.

    Raises AdapterError as `splice` does.
    """
    tokens = {name: len(vectors) for name, vectors in slots.items()}
    lengths = [_length(one, tokens) for one in groups]
    longest = max(lengths)
    used: list[int] = []
    pieces, spans = [], []  # segments with their places; (group, branch, row, place, length, first position)
    targets: dict[int, list[tuple[int, int]]] = {}  # text -> (place that says it, id)
    for number in sorted(range(len(groups)), key=lambda number: -lengths[number]):
        row = next((row for row, full in enumerate(used) if full + lengths[number] <= longest), len(used))
        used += [0] if row == len(used) else []
        start, one = row * longest + used[row], groups[number]
        stem = length_of(one.stem, tokens)
        pieces += _placed(one.stem, start, tokens)
        spans.append((number, 0, start, stem, 0))
        place = start + stem
        for branch, (text, rest) in enumerate(zip(one.texts, one.rests, strict=True), 1):
            own = length_of(rest, tokens)
            pieces += _placed(rest, place, tokens)
            spans.append((number, branch, place, own, stem))
            path = [*range(start, start + stem), *range(place, place + own)]
            targets[text] = _targets([*one.stem, *rest], path, tokens)
            if not targets[text]:
                raise AdapterError("a text has no words to learn: its answer is empty")
            place += own
        used[row] = place - row * longest
    size = len(used) * longest
    owner, branch, position = (np.full(size, value) for value in (-1, 0, 0))
    for number, which, place, length, first in spans:
        owner[place : place + length], branch[place : place + length] = number, which
        position[place : place + length] = np.arange(first, first + length)
    by, labels = zip(*(pair for text in range(len(texts)) for pair in targets[text]), strict=True)
    places, said = np.unique(np.array(by), return_inverse=True)
    keep = np.zeros(size, bool)
    keep[places] = True

    def there(values: np.ndarray | Sequence[int], *shape: int) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values)).to(lm.device).view(*shape or (-1,))

    shape = (len(used), longest)
    position_ids = there(position, *shape)
    mask = _masks(lm, there(owner, *shape), there(branch, *shape), position_ids)
    embeds = embed_at(lm, pieces, slots, size).view(*shape, -1)
    return SharedPrefixBatch(embeds, mask, position_ids, there(keep, *shape), there(said), there(labels))


def _placed(segments: Sequence[Segment], place: int, tokens: Mapping[str, int]) -> list[tuple[Segment, int]]:
    placed = []
    for segment in segments:
        placed.append((segment, place))
        place += length_of([segment], tokens)
    return placed


def _targets(segments: Sequence[Segment], path: Sequence[int], tokens: Mapping[str, int]) -> list[tuple[int, int]]:
    """(place that must say it, id) of each target of a text whose positions are at `path`."""
    found, at = [], 0
    for segment in segments:
        if segment.target:
            found += [(path[at + i - 1], token) for i, token in enumerate(segment.ids)]
        at += length_of([segment], tokens)
    return found


def _masks(
    lm: LanguageModel, owner: torch.Tensor, branch: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """What each position sees, as its model takes it: the stem of its own group and its own branch, not what comes
    after it; where layers have a window, nothing that is further back in the text. Padding sees itself.
    """
    config = lm.model.config.get_text_config()
    order = torch.arange(owner.shape[1], device=owner.device)
    sees = (owner[:, :, None] == owner[:, None]) & (order[:, None] >= order)
    sees &= (branch[:, None] == 0) | (branch[:, :, None] == branch[:, None])

    def added(sees: torch.Tensor) -> torch.Tensor:
        hidden = torch.finfo(lm.dtype).min
        return torch.zeros(sees.shape, dtype=lm.dtype, device=sees.device).masked_fill(~sees, hidden)[:, None]

    kinds, window = set(getattr(config, "layer_types", None) or ()), getattr(config, "sliding_window", None)
    if not window or kinds == {"full_attention"}:
        return added(sees)
    near = sees & (positions[:, :, None] - positions[:, None] < window)
    return {"full_attention": added(sees), "sliding_attention": added(near)} if kinds else added(near)
