"""What texts begin with and nothing trained has touched: words before the first vector.

With a chat template all texts begin with the system turn and the role header, 27 of the 69 positions of a SmolLM2
caption behind 16 image tokens; where the image comes after the question, some begin with the same question.
`adapters/lm/prefix_cache.py` computes them once.
"""

from collections.abc import Sequence

from periscope.adapters.prompting.segments import Segment

MIN_PREFIX = 8  # tokens; below that the mask and the copied keys cost what the positions save


def leading_ids(texts: Sequence[Sequence[Segment]]) -> tuple[int, ...]:
    """The ids that all texts begin with, before any vector, up to what predicts the first target; () if too few.

    Words alone that are to be answered have none: other texts hardly begin with all of them.
    """
    common = common_prefix([constant_words(text) for text in texts])
    return common if len(common) >= MIN_PREFIX else ()


def common_prefix(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest common prefix of all rows."""
    low, high = min(rows), max(rows)
    return low[: next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(map(len, rows)))]


def constant_words(text: Sequence[Segment]) -> tuple[int, ...]:
    """The ids that a text begins with, before any vector, up to what predicts its first target; () for words alone that
    are to be answered.
    """
    ids: tuple[int, ...] = ()
    for segment in text:
        if segment.slot is not None:
            return ids
        if segment.target:
            return ids[:-1]  # the last one's logits are needed
        ids += segment.ids
    return ()


def without_leading(text: Sequence[Segment], count: int) -> list[Segment]:
    """A text without its first `count` ids, all of which come before its first vector."""
    rest = []
    for segment in text:
        taken = min(count, len(segment.ids))
        count -= taken
        if not taken or taken < len(segment.ids):
            rest.append(segment._replace(ids=segment.ids[taken:]) if taken else segment)
    return rest
