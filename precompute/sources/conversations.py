"""Captions, questions and conversations in published formats -> turns of {"role", "content"}."""

import ast
import io
import json
import math
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from decimal import Decimal
from functools import lru_cache

from periscope.precompute.sources import Problem, Words
from periscope.precompute.sources.splits import split_named

MARK = "<image>"  # where a medium stands in a user turn; the same for sounds and clips
MARKS = ("<video>", "<audio>", "<speech>")
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
CAPTIONS = (
    *("text", "caption", "captions", "normalized_text", "sentences", "sentence", "description", "descriptions", "txt"),
    *("texts", "transcription", "transcript", "transcripts", "utterance", "alt_text", "alt", "title", "comment"),
    *("comments", "prompt", "label", "labels"),
)
NUMBERED = re.compile(r"(caption|text|sentence|description)_?\d+")  # several columns of captions
LONGER = re.compile(  # "blip_caption", "caption_text"; not "has_caption"
    r"(?!(has|is|num|n|no|with)_)\w+_(captions?|descriptions?|transcript(ion)?|sentence)|caption_(text|string|str)|raw_text"
)
LISTED = re.compile(  # a list as JSON, Python and numpy write it
    r"""\s*(\[\s*\]|\[\s*([uUbB]?['"{]|np\.str_).*\]|(np\.)?array\(\s*\[.*\)|[({]\s*[uUbB]?'.*'\s*,?\s*[)}])\s*""",
    re.DOTALL,
)
CLASSES = ("label", "labels")  # whose numbers are classes, not words
MISSING = frozenset(  # how programs say nothing; pandas reads these as missing too
    {
        *("", "nan", "NaN", "NAN", "-nan", "-NaN", "None", "NULL", "null", "NA", "N/A", "n/a", "<NA>", "NaT"),
        *("#NA", "#N/A", "#N/A N/A", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    }
)
ANSWERS = (
    "answer",
    "multiple_choice_answer",
    "answers",
    "response",
    "output",
    "completion",
    "ground_truth",
    "gt_answer",
)
QUESTIONS = ("question", "query")
ASKED = {"prompt": ("response", "completion", "answer"), "instruction": ("output", "response", "answer")}  # with these
SPLITS = ("split", "subset", "partition", "set")  # columns; the names in the last three must be those of splits
NAMED_WORDS_IN_ORDER = ("raw", "caption", "answer", "text")  # parts of an object in a cell that are its words
NAMED_WORDS = frozenset(NAMED_WORDS_IN_ORDER)
KNOWN = frozenset({"train", "val", "test"})
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


def conversation(rows: object, media: int, system: object = None) -> tuple[dict, ...] | str:
    """LLaVA's [{"from", "value"}], or [{"role", "content"}], or [{"user", "assistant"}] -> turns, or what is wrong.

    media: number of media of the text · system: the system's words where they stand beside the turns. `<image>`,
    `<video>` and `<audio>` in the user's turns keep their places, as `<image>`: training inserts the media there, in
    order. Without any, the media come before the first user turn.
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
            if role == "assistant" and not words.strip():
                return "an answer is empty"
            turns.append({"role": role, "content": words})
    if isinstance(system, str) and system.strip() and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
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
    """The name of a column as such names are compared: "Image Name" and "imageName" are image_name."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(column).strip())
    return re.sub(r"[\s_-]+", "_", words.lower())


def names_words(column: object) -> bool:
    """Whether a column usually holds words."""
    name = column_name(column)
    known = name in (*QUESTIONS, *ASKED, *CAPTIONS, *ANSWERS, *CONVERSATIONS)
    return known or bool(NUMBERED.fullmatch(name) or LONGER.fullmatch(name))


def words_of(row: Mapping, media: tuple[str, ...], where: str, split: str | None = None) -> Iterator[Words | Problem]:
    """The texts in one row of a table about `media`, by the usual names of columns, in any case: a conversation, else
    a question with its answer, else captions.

    where: the row, for error messages · split: of the table; a `split` in the row takes precedence.
    """
    row = {column_name(column): cell for column, cell in row.items()}
    split = _split_of_row(row) or split
    try:
        texts = list(_texts_of(row, len(media)))
    except ConversationError as error:
        yield Problem(media[0] if media else where, "bad conversation", f"{where}: {error}")
    except ValueError as error:
        yield Problem(media[0] if media else where, "words can't be read", f"{where}: {error}")
    else:
        yield from (Words(media, turns, split, None, meta) for turns, meta in texts)


class ConversationError(ValueError):
    """What is wrong with a conversation."""


def _split_of_row(row: Mapping) -> str | None:
    for column in SPLITS:
        name = split_named(row.get(column))
        if name and (column == SPLITS[0] or name in KNOWN):
            return name
    return None


def _texts_of(row: Mapping, media: int) -> Iterator[tuple[tuple[dict, ...], dict]]:
    """(turns, meta) of the texts in a row. Raises ConversationError, and ValueError for words that can't be read."""
    for column in CONVERSATIONS:
        turns_told = listed(row.get(column))
        if isinstance(turns_told, list) and turns_told and isinstance(turns_told[0], Mapping):
            turns = conversation(turns_told, media, row.get("system"))
            if isinstance(turns, str):
                raise ConversationError(turns)
            yield turns, {}
            return
    if asked := _questions_in(row):
        yield from _asked(row, asked)
        return
    numbered = [cell for column, cell in row.items() if NUMBERED.fullmatch(column)]
    longer = [cell for column, cell in row.items() if LONGER.fullmatch(column)]
    columns = [(column, row[column]) for column in CAPTIONS if column in row]
    columns += [("caption_1", cells) for cells in (numbered, longer) if cells]
    described = [(column, cell) for column, cell in columns if column not in CLASSES]
    for column, cell in described or columns:  # a class is no caption where captions are missing
        if captions := captions_of(cell, column in CLASSES):
            yield from ((caption(words), {}) for words in captions)
            return


def _questions_in(row: Mapping) -> list[str]:
    """The questions of a row, one or none as a rule."""
    pairs = [column for column, answers in ASKED.items() if any(row.get(answer) is not None for answer in answers)]
    return next((found for column in (*QUESTIONS, *pairs) if (found := strings(row.get(column)))), [])


def _asked(row: Mapping, asked: list[str]) -> Iterator[tuple[tuple[dict, ...], dict]]:
    """(turns, meta) of questions with their answers. Raises ValueError for several that don't match."""
    if len(asked) == 1:
        answers = next((found for column in ANSWERS if (found := _answers(row, column))), [])
        every = strings(row.get("answers"))
        yield question(asked[0], most_common(answers)), {"answers": every} if every else {}
        return
    told = next((cell for column in ANSWERS if isinstance(cell := listed(row.get(column)), Sequence)), ())
    if isinstance(told, str) or len(told) != len(asked):
        raise ValueError(f"{len(asked)} questions, and not as many answers")
    for one, answer in zip(asked, told, strict=True):
        yield question(one, most_common(strings(answer))), {}


def _answers(row: Mapping, column: str) -> list[str]:
    """The answers in a column. Raises ValueError for what isn't words."""
    cell = _chosen(row, column)
    found = strings(cell)
    if not found and isinstance(cell, Mapping) and cell:
        raise ValueError(f"the {column} is an object without one of {', '.join(NAMED_WORDS)}: {str(cell)[:60]}")
    return found


def _chosen(row: Mapping, column: str) -> object:
    """An answer; where it is the number of one of the row's choices, that choice."""
    choices, answer = listed(row.get("choices") or row.get("options")), row.get(column)
    if not isinstance(choices, list):
        return answer
    if isinstance(answer, str) and answer.strip().isdecimal() and answer.strip() not in strings(choices):
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        return choices[answer] if 0 <= answer < len(choices) else None
    return answer


def captions_of(value: object, classes: bool = False) -> list[str]:
    """The captions in a cell: as `strings`, without what programs write for none. classes: numbers aren't captions.

    Raises ValueError for the written form of a list that can't be read, and for an object of unknown parts.
    """
    if isinstance(value, str) and re.match(r"\s*\[\s*['\"]", value) and isinstance(listed(value), str):
        raise ValueError(f"a list that can't be read: {value[:60]}")
    value = _object_in(value)
    found = [words for words in strings(value) if words.strip() not in MISSING]
    if (
        not found
        and isinstance(value, Mapping)
        and not NAMED_WORDS & value.keys()
        and any(map(strings, value.values()))
    ):
        raise ValueError(f"an object without one of {', '.join(sorted(NAMED_WORDS))}: {str(value)[:60]}")
    return [words for words in found if not re.fullmatch(r"[-+]?\d+(\.\d*)?", words.strip())] if classes else found


def _object_in(value: object) -> object:
    """The object that a cell of a text file means, in JSON's form; any other value as it is."""
    if not isinstance(value, str) or not re.match(r"\s*\{\s*\"", value):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def people(value: object) -> list[str]:
    """What each of several people answered, as VQA's sets list them: those who said nothing count too."""
    answers = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    said = [one.get("answer") if isinstance(one, Mapping) else one for one in answers]
    return [written for one in said if (written := word(one)) is not None]


def word(value: object) -> str | None:
    """One value as words: yes and no for true and false, numbers as they are written, 3 for 3.0, dates as 2026-01-31,
    bytes as the UTF-8 they are; None for none.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
        return None
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value) if value.is_finite() else None
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
        value = next((value[name] for name in NAMED_WORDS_IN_ORDER if name in value), None)
        return strings(value)
    value = listed(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [text for element in value for text in strings(element)]
    written = word(value)
    return [written] if written is not None and written.strip() else []


def listed(value: object) -> object:
    """The list that a cell of a text file means: JSON's, or as Python and numpy print it (`['a dog' 'a cat']`,
    `('a', 'b')`, `array(['a', 'b'], dtype=object)`); any other value as it is.
    """
    if not isinstance(value, str) or not LISTED.fullmatch(value):
        return value
    value_of_json: object = None
    with suppress(ValueError, RecursionError):
        value_of_json = json.loads(value)
    found = value_of_json if isinstance(value_of_json, list) else _printed(value.strip())
    return found if isinstance(found, list) else value


def _printed(value: str) -> object:
    """The list that Python or numpy printed, or None."""
    if re.match(r"\[\s*\{", value):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    inside = re.sub(r",\s*dtype=[^()]*\)$", ")", value)
    found, commas = [], 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(inside).readline):
            if token.type == tokenize.STRING:
                element = word(ast.literal_eval(token.string))
                if element is None:
                    return None
                found.append(element)
            elif token.type == tokenize.NAME and token.string in (*MISSING, "array", "np", "numpy", "str_"):
                continue
            elif token.string.strip() and token.string not in "[](){},.":
                return None
            commas += token.string == ","
    except (ValueError, SyntaxError, tokenize.TokenError, MemoryError):
        return None
    return found if commas or value[0] not in "({" else None  # ('a') is no tuple
