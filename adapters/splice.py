"""From segments to a language model's inputs: embeddings with media spliced in by position, mask, labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.runtimes.sequence import VECTOR, MixedSequence
from periscope.adapters.prompting.segments import Segment
from periscope.errors import AdapterError

IGNORED = -100  # label of positions without a loss


@dataclass
class SplicedBatch:
    """A padded batch of embeddings.

    - `inputs_embeds`: `(batch, length, hidden_size)` in the model's dtype.
    - `attention_mask`, `position_ids`: `(batch, length)` int64.
    - `labels`: `(batch, length)` int64, `IGNORED` where there is no target.
    - `targets`: number of labels.
    - `slots`: where each slot begins, as (name, row of the batch, position).
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    targets: int
    slots: list[tuple[str, int, int]]


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Position ids `(batch, length)` that count the visible tokens of `mask` from 0."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def length_of(segments: Sequence[Segment], slot_tokens: Mapping[str, int] | int) -> int:
    """Length of a text in positions; `slot_tokens` is the number of vectors of each slot, or of every slot."""
    length = 0
    for segment in segments:
        if segment.slot is None:
            length += len(segment.ids)
        else:
            tokens = slot_tokens[segment.slot] if isinstance(slot_tokens, Mapping) else slot_tokens
            length += tokens // (segment.part[1] if segment.part else 1)
    return length


def splice(
    lm: LanguageModel,
    texts: Sequence[Sequence[Segment]],
    slots: Mapping[str, torch.Tensor],
    *,
    side: str = "right",
    train: bool = True,
) -> SplicedBatch:
    """Lay out each text's segments: words through the model's embedding, slots filled by name.

    `slots` are `(tokens, hidden_size)` in any dtype; `embed_at` is the one place where they take the model's dtype.
    `side` is that of the padding: "right" for training, "left" for generation.

    Raises AdapterError for a text without target ids if `train`, and for vectors of another width.
    """
    device = lm.device
    pieces: list[tuple[Segment, int]] = []
    targets: list[tuple[int, int]] = []  # (position in the flat batch, id)
    slot_starts: list[tuple[str, int, int]] = []
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
                slot_starts.append((segment.slot, row, place - row * longest))
            place += length_of([segment], tokens)

    def index(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    flat = embed_at(lm, pieces, slots, len(texts) * longest)
    labels = torch.full((len(texts) * longest,), IGNORED, dtype=torch.long, device=device)
    if targets:
        labels[index([position for position, _ in targets])] = index([token for _, token in targets])
    steps = torch.arange(longest, device=device)[None]
    size = index(lengths)[:, None]
    mask = steps >= longest - size if side == "left" else steps < size
    shape = (len(texts), longest)
    embeds, labels = flat.view(*shape, -1), labels.view(shape)
    return SplicedBatch(embeds, mask.long(), positions_of(mask), labels, len(targets), slot_starts)


def embed_at(
    lm: LanguageModel, pieces: Sequence[tuple[Segment, int]], slots: Mapping[str, torch.Tensor], size: int
) -> torch.Tensor:
    """Embeddings `(size, hidden_size)` in the model's dtype: each segment from its place on, zeros elsewhere.

    Raises AdapterError for vectors of another width than the model's, and for a number of rows that doesn't divide an
    image's tokens.
    """
    device, dtype = lm.device, lm.dtype
    ids: list[int] = []
    id_places: list[int] = []
    vectors: list[torch.Tensor] = []
    vector_places: list[int] = []
    for segment, place in pieces:
        if segment.slot is None:
            ids.extend(segment.ids)
            id_places.extend(range(place, place + len(segment.ids)))
            continue
        slot = _vectors_of(lm, segment, slots[segment.slot])
        vectors.append(slot.to(device=device, dtype=dtype))
        vector_places.extend(range(place, place + len(slot)))

    def index(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    flat = torch.zeros(size, lm.hidden_size, dtype=dtype, device=device)
    if ids:
        flat = flat.index_copy(0, index(id_places), lm.embed(index(ids)))
    if vectors:
        flat = flat.index_copy(0, index(vector_places), torch.cat(vectors))
    return flat


def mix(lm: LanguageModel, text: Sequence[Segment], slots: Mapping[str, torch.Tensor]) -> MixedSequence:
    """A text's words and vectors in one sequence, for a runtime. Raises AdapterError as `embed_at`."""
    ids: list[int] = []
    vectors = [torch.zeros(0, lm.hidden_size)]
    for segment in text:
        if segment.slot is None:
            ids.extend(segment.ids)
        else:
            vectors.append(_vectors_of(lm, segment, slots[segment.slot]).detach().to("cpu", torch.float32))
            ids.extend([VECTOR] * len(vectors[-1]))
    return MixedSequence(tuple(ids), torch.cat(vectors))


def target_places(text: Sequence[Segment], slots: Mapping[str, torch.Tensor]) -> list[tuple[int, int]]:
    """Each target of a text as (position, id), in order."""
    tokens = {name: len(vectors) for name, vectors in slots.items()}
    targets: list[tuple[int, int]] = []
    place = 0
    for segment in text:
        if segment.target:
            targets += enumerate(segment.ids, place)
        place += length_of([segment], tokens)
    return targets


def _vectors_of(lm: LanguageModel, segment: Segment, slot: torch.Tensor) -> torch.Tensor:
    """The vectors of a slot that a segment has, all or a part of them."""
    if segment.part:
        number, rows = segment.part
        if len(slot) % rows:
            raise AdapterError(f"{len(slot)} tokens of a medium can't be laid out in {rows} rows")
        slot = slot.unflatten(0, (rows, -1))[number]
    if slot.shape[-1] != lm.hidden_size:
        raise AdapterError(
            f"the adapter gives vectors of width {slot.shape[-1]}, but {lm.name} has hidden_size "
            f"{lm.hidden_size}; use the language model the adapter was trained with"
        )
    return slot
