"""Captions, questions and conversations in published formats -> turns of {"role", "content"}."""

import ast
import io
import json
import math
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from periscope.precompute.sources import Problem, Words
from periscope.precompute.sources.splits import split_named

MARK = "<image>"  # where a medium stands in a user turn; the same for sounds and clips
MARKS = ("<video>", "<audio>", "<speech>")
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
CAPTIONS = (
    *("text", "caption", "captions", "normalized_text", "sentences", "sentence", "description", "descriptions", "txt"),
    *("texts", "transcription", "transcript", "transcripts", "utterance", "alt_text", "alt", "label", "labels"),
)
NUMBERED = re.compile(r"(caption|text|sentence|description)_?\d+")  # several columns of captions
CLASSES = ("label", "labels")  # whose numbers are classes, not words
MISSING = frozenset(
    {"", "nan", "NaN", "NAN", "None", "NULL", "null", "<NA>", "#N/A", "NaT"}
)  # how programs say nothing
ANSWERS = ("answer", "multiple_choice_answer", "answers")
CONVERSATIONS = ("conversations", "messages", "turns", "texts")


def identity_of(value: object) -> str | None:
    """An id as text, in which ids are compared: files write 1, "1" and 1.0 for the same; None for what is none."""
    return None if isinstance(value, bool) or not isinstance(value, int | float | str) else word(value)


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
            words = words if role != "assistant" or isinstance(words, str) else word(words)
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


@lru_cache(maxsize=1024)
def column_name(column: object) -> str:
    """The name of a column as such names are compared: "Image Name" is image_name."""
    return re.sub(r"[\s-]+", "_", str(column).strip().lower())


def names_words(column: object) -> bool:
    """Whether a column usually holds words."""
    name = column_name(column)
    return name == "question" or name in (*CAPTIONS, *ANSWERS, *CONVERSATIONS) or bool(NUMBERED.fullmatch(name))


def words_of(row: Mapping, media: tuple[str, ...], where: str, split: str | None = None) -> Iterator[Words | Problem]:
    """The texts in one row of a table about `media`, by the usual names of columns, in any case: a conversation, else
    a question with its answer, else captions.

    where: the row, for error messages · split: of the table; a `split` in the row takes precedence.
    """
    row = {column_name(column): cell for column, cell in row.items()}
    split = split_named(row.get("split")) or split
    for column in CONVERSATIONS:
        turns_told = listed(row.get(column))
        if isinstance(turns_told, list) and turns_told and isinstance(turns_told[0], Mapping):
            turns = conversation(turns_told, len(media))
            if isinstance(turns, str):
                yield Problem(media[0] if media else where, "bad conversation", f"{where}: {turns}")
            else:
                yield Words(media, turns, split)
            return
    asked = row.get("question")
    if isinstance(asked, str) and asked.strip():
        answers = next((found for column in ANSWERS if (found := strings(_chosen(row, column)))), [])
        every = strings(row.get("answers"))
        yield Words(media, question(asked, most_common(answers)), split, None, {"answers": every} if every else {})
        return
    numbered = [cell for column, cell in row.items() if NUMBERED.fullmatch(column)]
    for column, cell in [*((column, row.get(column)) for column in CAPTIONS), ("caption_1", numbered)]:
        try:
            captions = captions_of(cell, column in CLASSES)
        except ValueError as error:
            yield Problem(media[0] if media else where, "words can't be read", f"{where}: {error}")
            return
        if captions:
            yield from (Words(media, caption(words), split) for words in captions)
            return


def _chosen(row: Mapping, column: str) -> object:
    """An answer; where it is the number of one of the row's choices, that choice."""
    choices, answer = row.get("choices") or row.get("options"), row.get(column)
    if isinstance(answer, int) and not isinstance(answer, bool) and isinstance(choices, list):
        return choices[answer] if 0 <= answer < len(choices) else None
    return answer


def captions_of(value: object, classes: bool = False) -> list[str]:
    """The captions in a cell: as `strings`, without what programs write for none. classes: numbers aren't captions.

    Raises ValueError for the written form of a list that can't be read.
    """
    if isinstance(value, str) and re.match(r"\s*\[\s*['\"]", value) and isinstance(listed(value), str):
        raise ValueError(f"a list that can't be read: {value[:60]}")
    found = [words for words in strings(value) if words.strip() not in MISSING]
    return [words for words in found if not re.fullmatch(r"[-+]?\d+(\.\d*)?", words.strip())] if classes else found


def people(value: object) -> list[str]:
    """What each of several people answered, as VQA's sets list them: those who said nothing count too."""
    answers = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    said = [one.get("answer") if isinstance(one, Mapping) else one for one in answers]
    return [written for one in said if (written := word(one)) is not None]


def word(value: object) -> str | None:
    """One value as words: yes and no for true and false, numbers as they are written, 3 for 3.0; None for none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value) if isinstance(value, int | str) else None


def strings(value: object) -> list[str]:
    """The texts in a cell: itself, its elements, or their "raw", "caption" or "answer"; numbers and truth values as
    `word` writes them.
    """
    if isinstance(value, Mapping):
        value = next((value[name] for name in ("raw", "caption", "answer", "text") if name in value), None)
        return strings(value)
    value = listed(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [text for element in value for text in strings(element)]
    written = word(value)
    return [written] if written is not None and written.strip() else []


def listed(value: object) -> object:
    """The list that a cell of a text file means: JSON's, or as Python and numpy print it (`['a dog' 'a cat']`); any
    other value as it is.
    """
    if not isinstance(value, str) or not re.match(r"\s*\[\s*(['\"{]|\])", value) or not value.rstrip().endswith("]"):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = _printed(value.strip())
    return found if isinstance(found, list) else value


def _printed(value: str) -> object:
    if value.lstrip("[ \n").startswith("{"):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(value).readline):
            if token.type == tokenize.STRING:
                element = ast.literal_eval(token.string)
                if not isinstance(element, str):
                    return None
                found.append(element)
            elif token.type == tokenize.NAME and token.string in MISSING:
                continue
            elif token.string.strip() and token.string not in "[],":
                return None
    except (ValueError, SyntaxError, tokenize.TokenError, MemoryError):
        return None
    return found
