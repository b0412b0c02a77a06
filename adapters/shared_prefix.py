"""Texts with a shared prefix: one pass over the prefix for all of them.

Several captions or questions about one image differ only after the image. Their prefix is laid out once, with each
text's suffix behind it. A suffix attends to the prefix and itself, never to another suffix, and its position ids
continue the prefix's, so every text is computed as it would be alone, and an image's tokens are paid for once. Groups
of prefix and suffixes are packed into rows (`packing.py`), and don't attend to one another either.

Where the question comes before the image, it depends on nothing trained: the keys and values of each different question
are computed once, apart, and the groups of texts that begin with it attend to them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from transformers import PretrainedConfig

from periscope.adapters.constant_prefix import MIN_PREFIX, common_prefix, constant_words, without_leading
from periscope.adapters.lm.families import family_of
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.selective_scan import KERNEL
from periscope.adapters.packing import LEADING, PackedRows, PrefixGroup, SharedPass, pack_rows, packed_positions
from periscope.adapters.prompting.segments import Segment
from periscope.adapters.splice import embed_at, length_of

# Share when that takes fewer positions than this fraction of the padded batch; the second where a cached prefix needs a
# mask all the same.
SHARING_PAYS, SHARING_PAYS_WITH_MASK = 0.8, 0.9
FORWARD_ONLY = 0.5  # what a position of cached words costs where nothing trained changes them
SHARED_LAYERS = {"full_attention", "sliding_attention"}


@dataclass
class SharedPrefixBatch:
    """A batch of packed groups.

    - `inputs_embeds`: `(rows, length, hidden_size)` in the model's dtype.
    - `attention_mask`: `(rows, 1, length, before + length)`, added to attention scores; or one for each kind of layer,
      by name. `before` is the number of cached keys before each row.
    - `position_ids`: `(rows, length)` int64.
    - `keep`: `(rows, length)` bool, positions whose logits are needed.
    - `predicted_by`, `labels`: `(targets,)` int64. For each target, text by text: the index among the kept positions of
      the one that predicts it, and its id.
    - `cached`: `(rows, before)` int64, the places of each row's cached keys (`packing.CachedKeys`); None where all rows
      have the same.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor | dict[str, torch.Tensor]
    position_ids: torch.Tensor
    keep: torch.Tensor
    predicted_by: torch.Tensor
    labels: torch.Tensor
    cached: torch.Tensor | None = None


def can_share(lm: LanguageModel) -> bool:
    """Whether this model can share prefixes: a class that can, with attention that takes any mask."""
    return class_can_share(lm.model.config) and lm.model.config._attn_implementation in ("sdpa", "eager")


def class_can_share(config: PretrainedConfig) -> bool:
    """Whether models of this configuration can share prefixes: full or sliding-window attention in every layer, given
    position ids. A state-space model has no mask that could separate the suffixes.
    """
    family, kinds = family_of(config), set(getattr(config.get_text_config(), "layer_types", None) or ())
    return bool(family.tested) and not family.recurrent and kinds <= SHARED_LAYERS


def why_no_prefix(lm: LanguageModel, image_first: bool = False) -> str:
    """Why this model's texts can't begin with cached words; "" if they can. `image_first`: the adapter injects images
    at the beginning of the text, whatever the template says (`epalm_compat`).
    """
    if image_first:
        return "epalm_compat puts the image first, so that no words come before it"
    if lm.family.recurrent:
        if lm.changes:
            return f"a scan's last state has no gradient, which {'LoRA' if lm.lora else '--train-lm'} needs"
        return "mamba-ssm's kernel starts from an empty state" if KERNEL and lm.device.type == "cuda" else ""
    if not can_share(lm):
        return "it is tested only for the families in the table, with attention by sdpa or eager"
    return ""


def why_no_words(lm: LanguageModel, injects: bool = False) -> str:
    """Why the texts of a step that begin with the same words, such as a question before the image, each compute them;
    "" if they are computed once. `injects`: the adapter injects images into inner layers.
    """
    if injects:
        return "an injected image takes a row for each text"
    if lm.family.recurrent:
        return "a scan goes on from one state, and the rows of a batch would each need their own question's"
    return why_no_prefix(lm)


def group_by_prefix(texts: Sequence[Sequence[Segment]], words: Sequence[int] = ()) -> list[PrefixGroup]:
    """Group the texts that are the same up to their last image; what they have in common after it joins the prefix. A
    text without an image is a group of its own. `words`: the cached words that each text follows, in which all texts of
    a group are alike.
    """
    words = words or [LEADING] * len(texts)
    same: dict[tuple[object, ...], list[int]] = {}
    for number, text in enumerate(texts):
        cut = max((i + 1 for i, segment in enumerate(text) if segment.slot), default=0)
        same.setdefault((words[number], *text[:cut]) if cut else (number,), []).append(number)
    groups = []
    for key, numbers in same.items():
        cut = len(key) - 1
        prefix, suffixes = list(texts[numbers[0]][:cut]), [list(texts[number][cut:]) for number in numbers]
        first = [suffix[0] if suffix else Segment() for suffix in suffixes]
        if len(numbers) > 1 and len({segment.target for segment in first}) == 1:
            common = common_prefix([segment.ids for segment in first])
            prefix += [Segment(ids=common, target=first[0].target)] if common else []
            suffixes = [
                [Segment(ids=suffix[0].ids[len(common) :], target=suffix[0].target), *suffix[1:]] for suffix in suffixes
            ]
        groups.append(PrefixGroup(numbers, prefix, suffixes, words[numbers[0]]))
    return groups


def choose_pass(
    texts: Sequence[Sequence[Segment]], tokens: Mapping[str, int], leading: int, words_cost: float | None
) -> SharedPass | None:
    """How the texts share a pass, in the way that takes fewest positions; None where a row for each costs as much.

    tokens: vectors per slot · leading: length of the cached words that all texts begin with and leave out ·
    words_cost: what a position of other cached words costs, against one in a row; None where there can't be any.
    """
    padded = len(texts) * max(length_of(text, tokens) for text in texts)
    shared = SharedPass(group_by_prefix(texts), [])
    cost, chosen = float(packed_positions(shared.groups, tokens)), shared
    behind_words = None if words_cost is None else _behind_words(texts)
    if behind_words and words_cost is not None:
        groups, words = behind_words
        least = packed_positions(groups, tokens) + words_cost * sum(map(len, words))
        if least < cost:
            cost, chosen = least, behind_words
    return chosen if cost < (SHARING_PAYS_WITH_MASK if leading else SHARING_PAYS) * padded else None


def _behind_words(texts: Sequence[Sequence[Segment]]) -> SharedPass | None:
    """The texts behind what comes before their first vector, as cached words; None where all of that is short."""
    own = [constant_words(text) for text in texts]
    if max(map(len, own)) < MIN_PREFIX:
        return None
    words = [ids for ids in dict.fromkeys(own) if ids]
    number_of = {ids: number for number, ids in enumerate(words)} | {(): LEADING}
    rest = [without_leading(text, len(ids)) for text, ids in zip(texts, own, strict=True)]
    return SharedPass(group_by_prefix(rest, [number_of[ids] for ids in own]), words)


def pack_shared_prefix(
    lm: LanguageModel,
    texts: int,
    shared: SharedPass,
    slots: Mapping[str, torch.Tensor],
    before: int = 0,
) -> SharedPrefixBatch:
    """Pack the groups of so many texts. `slots` as in `splice`; `before` is the length of a cached prefix that every
    text begins with and the groups leave out.

    Raises AdapterError as `splice` does.
    """
    tokens = {name: len(vectors) for name, vectors in slots.items()}
    rows = pack_rows(texts, shared.groups, tokens, before, shared.words)
    keep = np.zeros(rows.rows * rows.length, bool)
    keep[rows.places] = True

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values).to(lm.device)

    embeds = embed_at(lm, rows.pieces, slots, keep.size).view(rows.rows, rows.length, -1)
    return SharedPrefixBatch(
        embeds,
        _masks_of(lm, rows, before),
        tensor(rows.position),
        tensor(keep).view(rows.rows, rows.length),
        tensor(rows.predicted_by).view(-1),
        tensor(rows.labels),
        tensor(rows.before.place) if rows.before else None,
    )


def causal_masks(lm: LanguageModel, length: int, before: int) -> torch.Tensor | dict[str, torch.Tensor]:
    """The additive attention masks of rows of `length` tokens behind a cached prefix of `before`, for any number of
    rows: `(1, 1, length, before + length)`, or one for each kind of layer.

    transformers would make a boolean one for every row, which each layer's attention turns into numbers and keeps.
    """
    order = torch.arange(length, device=lm.device)
    visible = functional.pad(order[None, :, None] >= order, (before, 0), value=True)
    keys = torch.arange(before + length, device=lm.device)[None]
    return _masks(lm, visible, keys[:, before:], keys)


def _masks_of(lm: LanguageModel, rows: PackedRows, before: int) -> torch.Tensor | dict[str, torch.Tensor]:
    """The attention masks of packed rows: a token attends to its group's prefix and its own branch, causally, to the
    `before` tokens of a cached prefix, and to the cached words that its group follows. Padding attends to itself, so
    that no row is empty.
    """
    group, branch, positions, words = (
        torch.as_tensor(values).to(lm.device) for values in (rows.group, rows.branch, rows.position, rows.words)
    )
    order = torch.arange(rows.length, device=lm.device)
    visible = (group[:, :, None] == group[:, None]) & (order[:, None] >= order)
    visible &= (branch[:, None] == 0) | (branch[:, :, None] == branch[:, None])
    if rows.before is None:
        visible = functional.pad(visible, (before, 0), value=True)
        keys = torch.arange(before, device=lm.device).expand(rows.rows, -1)
    else:
        cached, keys = (torch.as_tensor(of).to(lm.device) for of in (rows.before.words, rows.before.position))
        read = (cached[:, None] == LEADING) | (cached[:, None] == words[:, :, None])
        visible = torch.cat([read, visible], 2)
    return _masks(lm, visible, positions, torch.cat([keys, positions], 1))


def _masks(
    lm: LanguageModel, visible: torch.Tensor, positions: torch.Tensor, keys: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The additive masks of `visible` `(rows, queries, keys)`; in layers with a sliding window, within the window only.
    positions, keys: position ids of queries `(rows, queries)` and keys `(rows, keys)`.
    """
    config = lm.model.config.get_text_config()

    def additive(visible: torch.Tensor) -> torch.Tensor:
        hidden = torch.finfo(lm.dtype).min
        return torch.zeros(visible.shape, dtype=lm.dtype, device=visible.device).masked_fill(~visible, hidden)[:, None]

    kinds, window = set(getattr(config, "layer_types", None) or ()), getattr(config, "sliding_window", None)
    if not window or kinds == {"full_attention"}:
        return additive(visible)
    near = visible & (positions[:, :, None] - keys[:, None] < window)
    return {"full_attention": additive(visible), "sliding_attention": additive(near)} if kinds else additive(near)
