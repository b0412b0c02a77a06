"""The parts of a prompt: segments of token ids and slots for vectors, and the pieces of text they are made from."""

from typing import NamedTuple

SOFT_PROMPT, SOFT_PROMPT_END = "soft prompt", "soft prompt's end"  # slot names
MEDIA_MARK = "<image>"  # marks media of any modality in a text whose media are all of one modality
REQUEST = "request"  # role of a user turn that asks for a caption


def mark_of(modality: str) -> str:
    """The mark of a modality in a user's words: `<image>`, `<audio>`, `<video>`."""
    return f"<{modality}>"


class Segment(NamedTuple):
    """A stretch of the sequence: token ids, or the place (`slot`) of an image's or the soft prompt's vectors.

    `target` marks ids that the model is trained to predict. `part` is `(k, n)` when only the k-th of n equal parts of
    the slot's vectors stands here, as a row of patches does.
    """

    ids: tuple[int, ...] = ()
    slot: str | None = None
    target: bool = False
    part: tuple[int, int] | None = None


class Piece(NamedTuple):
    """Text that is not tokenized yet.

    `from_data` marks words from data, which never become special tokens; other pieces are the template's own. `target`
    marks what the model is trained to say, `delimiter` what stands around or between media and is never a target.
    """

    text: str
    from_data: bool = False
    target: bool = False
    delimiter: bool = False


def is_data(item: Segment | Piece) -> bool:
    """Whether an item is words from data."""
    return isinstance(item, Piece) and item.from_data
