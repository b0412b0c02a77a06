"""Captions, questions and conversations in published formats -> turns of {"role", "content"}."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from periscope.precompute.sources import Problem, Words
from periscope.precompute.sources.splits import split_named

MARK = "<image>"  # where a medium stands in a user turn; the same for sounds and clips
MARKS = ("<video>", "<audio>", "<speech>")
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
CAPTIONS = ("text", "caption", "captions", "sentences", "sentence", "description", "txt")
ANSWERS = ("answer", "multiple_choice_answer", "answers")
CONVERSATIONS = ("conversations", "messages", "turns", "texts")


def caption(words: str) -> tuple[dict, ...]:
    """A caption as turns: one assistant turn, whitespace collapsed."""
    return ({"role": "assistant", "content": " ".join(words.split())},)


def question(asked: str, answer: str | None) -> tuple[dict, ...]:
    """A question as turns: a user turn, and an assistant turn if there is an answer."""
    turns = ({"role": "user", "content": " ".join(asked.split())},)
    return turns if answer is None else (*turns, *caption(answer))


def conversation(rows: object, media: int) -> tuple[dict, ...] | str:
    """LLaVA's [{"from", "value"}], or [{"role", "content"}], or [{"user", "assistant"}] -> turns, or what is wrong.

    media: number of media of the text. `<image>`, `<video>` and `<audio>` in the user's turns keep their places, as
    `<image>`: training inserts the media there, in order. Without any, the media come before the first user turn.
    """
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        return "the conversation is empty or not a list"
    turns = []
    for row in rows:
        for speaker, words in _spoken(row):
            role = SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
            if role is None or not isinstance(words, str):
                return f"a turn of {str(speaker)[:40]!r} can't be read"
            if role == "user":
                for mark in MARKS:
                    words = words.replace(mark, MARK)
            turns.append({"role": role, "content": words})
    marks = sum(turn["content"].count(MARK) for turn in turns if turn["role"] == "user")
    if marks and marks != media:
        return f"{marks} {MARK} marks for {media} media"
    return tuple(turns)


def _spoken(row: object) -> Iterator[tuple[object, object]]:
    if not isinstance(row, Mapping):
        yield "", None
    elif "from" in row:
        yield row["from"], row.get("value")
    elif "role" in row:
        yield row["role"], _content(row.get("content"))
    else:
        pairs = [(name, row[name]) for name in ("user", "assistant") if name in row]
        yield from pairs or [("", None)]


def _content(content: object) -> object:
    """The text of a "content", which may be a list of {"type": "text" | "image"}."""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        return content
    return "".join(str(part.get("text") or "") if part.get("type") == "text" else MARK for part in content)


def most_common(answers: Sequence[str]) -> str | None:
    """The most frequent answer, the earliest of equals; None when there is none, or all are blank."""
    counts = Counter(answer for answer in answers if answer.strip())
    return max(counts, key=lambda answer: counts[answer]) if counts else None


def words_of(row: Mapping, media: tuple[str, ...], where: str, split: str | None = None) -> Iterator[Words | Problem]:
    """The texts in one row of a table about `media`, by the usual column names: a conversation, else a question with
    its answer, else captions.

    where: the row, for error messages · split: of the table; a `split` in the row takes precedence.
    """
    split = split_named(row.get("split")) or split
    for column in CONVERSATIONS:
        if isinstance(row.get(column), list) and row[column] and isinstance(row[column][0], Mapping):
            turns = conversation(row[column], len(media))
            if isinstance(turns, str):
                yield Problem(media[0] if media else where, "bad conversation", f"{where}: {turns}")
            else:
                yield Words(media, turns, split)
            return
    asked = row.get("question")
    if isinstance(asked, str) and asked.strip():
        answers = next((found for column in ANSWERS if (found := strings(row.get(column)))), [])
        every = strings(row.get("answers"))
        yield Words(media, question(asked, most_common(answers)), split, None, {"answers": every} if every else {})
        return
    for column in CAPTIONS:
        if captions := strings(row.get(column)):
            yield from (Words(media, caption(words), split) for words in captions)
            return


def people(value: object) -> list[str]:
    """The answers of several annotators, as VQA datasets list them, empty ones included."""
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    said = [one.get("answer") if isinstance(one, Mapping) else one for one in listed]
    return [one for one in said if isinstance(one, str)]


def strings(value: object) -> list[str]:
    """The texts in a cell: itself, its elements, or their "raw", "caption" or "answer"."""
    if isinstance(value, Mapping):
        value = next((value[name] for name in ("raw", "caption", "answer") if name in value), None)
        return strings(value)
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, Sequence):
        return [text for element in value for text in strings(element)]
    return []
