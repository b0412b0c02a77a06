"""A text as it is trained on, written for people."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from periscope.adapters.prompting.segments import Segment

WIDTH = 1000  # characters of one part that are shown


def shown(
    segments: Iterable[Segment], decode: Callable[[Sequence[int]], str], name_of: Callable[[Segment], str]
) -> Iterator[tuple[str, str]]:
    """("prompt" or "target", its words) in order, the targets being what the model learns to say.

    decode: ids -> text, special tokens spelled out · name_of: the slot of a segment -> what stands for it in brackets.
    """
    ids: list[int] = []  # since the last slot: a token's spaces depend on those before it
    said, words = "", ""
    for segment in segments:
        role = "target" if segment.target else "prompt"
        if said and role != said:
            yield said, words
            words = ""
        said = role
        if segment.slot:
            words, ids = f"{words}[{name_of(segment)}]", []
            continue
        before = decode(ids) if ids else ""
        ids += segment.ids
        text = decode(ids)
        words += text.removeprefix(before) if text.startswith(before) else decode(segment.ids)
    if said:
        yield said, words


def lines_of_text(parts: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each part; line ends are written as \\\\n, and long parts cut."""
    return [f"  {role}: {_short(words)}" for role, words in parts]


def _short(words: str) -> str:
    written = words.replace("\n", "\\n")
    return written if len(written) <= WIDTH else f"{written[:WIDTH]}... ({len(written)} characters)"
