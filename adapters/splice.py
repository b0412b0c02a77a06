"""From segments to the tensors a language model takes: embeddings with media spliced in by position, mask, labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.prompting.prompt import Segment
from periscope.errors import AdapterError

IGNORED = -100


@dataclass
class SplicedBatch:
    """A padded batch, driven by vectors.

    `inputs_embeds` `(batch, length, hidden_size)` in the model's dtype; `attention_mask`, `position_ids` and `labels`
    `(batch, length)`, labels -100 where nothing is to be said. `targets` counts the labels. `slots` says where each
    slot begins: (its name, the text's row, the position).
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    targets: int
    slots: list[tuple[str, int, int]]


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Positions `(batch, length)` that count what `mask` shows, from 0."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def length_of(segments: Sequence[Segment], slot_tokens: Mapping[str, int] | int) -> int:
    """The number of positions a text takes; `slot_tokens` says how many each slot takes (or all alike)."""
    count = slot_tokens.__getitem__ if isinstance(slot_tokens, Mapping) else lambda slot: slot_tokens
    return sum(len(s.ids) if s.slot is None else count(s.slot) // (s.part[1] if s.part else 1) for s in segments)


def splice(
    lm: LanguageModel,
    texts: Sequence[Sequence[Segment]],
    slots: Mapping[str, torch.Tensor],
    *,
    side: str = "right",
    train: bool = True,
) -> SplicedBatch:
    """Lay out each text's segments: words through the model's embedding, slots filled by name.

    A slot's vectors are `(tokens, hidden_size)`, any dtype; this is the one place where they become the model's dtype.
    `side` is where the padding goes: "right" for training, "left" for generation.
    Raises AdapterError for a text without target ids when `train` is set, and for vectors of another width.
    """
    device = lm.device
    pieces, targets, begun = [], [], []
    tokens = {name: len(vectors) for name, vectors in slots.items()}
    lengths = [length_of(text, tokens) for text in texts]
    longest = max(lengths)
    for row, text in enumerate(texts):
        if train and not any(segment.target for segment in text):
            raise AdapterError("a text has no words to learn: its answer is empty")
        place = row * longest + (longest - lengths[row] if side == "left" else 0)
        for segment in text:
            pieces.append((segment, place))
            if segment.target:
                targets.extend(zip(range(place, place + len(segment.ids)), segment.ids, strict=True))
            if segment.slot is not None:
                begun.append((segment.slot, row, place - row * longest))
            place += length_of([segment], tokens)

    def index(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    flat = embed_at(lm, pieces, slots, len(texts) * longest)
    labels = torch.full((len(texts) * longest,), IGNORED, dtype=torch.long, device=device)
    if targets:
        where, what = zip(*targets, strict=True)
        labels[index(list(where))] = index(list(what))
    steps = torch.arange(longest, device=device)[None]
    size = index(lengths)[:, None]
    mask = steps >= longest - size if side == "left" else steps < size
    shape = (len(texts), longest)
    embeds, labels = flat.view(*shape, -1), labels.view(shape)
    return SplicedBatch(embeds, mask.long(), positions_of(mask), labels, len(targets), begun)


def embed_at(
    lm: LanguageModel, pieces: Sequence[tuple[Segment, int]], slots: Mapping[str, torch.Tensor], size: int
) -> torch.Tensor:
    """`(size, hidden_size)` in the model's dtype: each segment's words or vectors from its place on, zeros elsewhere.

    Raises AdapterError for vectors of another width than the model's, and for rows that a medium can't be cut into.
    """
    device, dtype = lm.device, lm.dtype
    ids, id_places, vectors, vector_places = [], [], [], []
    for segment, place in pieces:
        if segment.slot is None:
            ids.extend(segment.ids)
            id_places.extend(range(place, place + len(segment.ids)))
            continue
        medium = slots[segment.slot]
        if segment.part:
            number, rows = segment.part
            if len(medium) % rows:
                raise AdapterError(f"{len(medium)} tokens of a medium can't be laid out in {rows} rows")
            medium = medium.unflatten(0, (rows, -1))[number]
        if medium.shape[-1] != lm.hidden_size:
            raise AdapterError(
                f"the adapter gives vectors of width {medium.shape[-1]}, but {lm.name} has hidden_size "
                f"{lm.hidden_size}; use the language model the adapter was trained with"
            )
        vectors.append(medium.to(device=device, dtype=dtype))
        vector_places.extend(range(place, place + len(medium)))

    def index(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    flat = torch.zeros(size, lm.hidden_size, dtype=dtype, device=device)
    if ids:
        flat = flat.index_copy(0, index(id_places), lm.embed(index(ids)))
    if vectors:
        flat = flat.index_copy(0, index(vector_places), torch.cat(vectors))
    return flat
