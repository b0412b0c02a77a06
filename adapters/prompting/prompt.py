"""From turns to segments of token ids: one function for training and for generation.

Text is split at media before it is tokenised, so there are no placeholder ids and nothing is counted on strings. The
template's own pieces are tokenised with their special tokens; words from data never are: `</s>` in a caption is text.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import takewhile
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from periscope.adapters.prompting.boxes import said
from periscope.errors import AdapterError

MEDIA_MARK = "<image>"  # stands for a medium of any modality where a text's media are all of one
SOFT_PROMPT, SOFT_PROMPT_END = "soft prompt", "soft prompt's end"


class Segment(NamedTuple):
    """A stretch of the sequence: token ids, or the place (`slot`) of a medium's or the soft prompt's vectors.

    `target` marks ids that the model is trained to say. `part` (k, of n) says that of the slot's vectors only the k-th
    of n equal parts stands here, as a row of patches does.
    """

    ids: tuple[int, ...] = ()
    slot: str | None = None
    target: bool = False
    part: tuple[int, int] | None = None


@dataclass(frozen=True)
class Template:
    """How turns become text. `style` is "plain" for base models or "chat" for the tokenizer's own chat template.

    `delimiters` stand before and after each medium. `caption_prompt` is what the user says when a text has no question.
    `soft_prompt` is where the soft prompt stands in the first user turn: "before" the media, "after" them, or "around"
    the turn's words, its second half behind them. "first" is before everything, the begin-of-text token too, where PEFT
    and eP-ALM have it.

    `media` is where media without a mark stand: "before" the first user's words, or "after" them, so that the model
    reads a medium knowing what is asked (the task-aware encoding of Pantazopoulos et al. 2024, arXiv 2409.05395).
    `row_separator` stands between the `rows` rows of a medium's tokens, for models that can't count positions (theirs,
    for Mamba). `eos`: whether the model is trained to end its answer. `loss_on`: "answer", or "all" words as eP-ALM
    does: questions and the template's own words too. `box_decimals`: of the numbers of a box in words.
    """

    style: str = "plain"
    delimiters: tuple[str, str] = ("<image>", "</image>")
    caption_prompt: str = ""
    question: str = "Question: {} Answer: "
    soft_prompt: str = "before"
    media: str = "before"
    row_separator: str = ""
    rows: int = 0
    eos: bool = True
    loss_on: str = "answer"
    box_decimals: int = 2

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Template":
        return cls(**{**fields, "delimiters": tuple(fields["delimiters"])})


def default_template(
    tokenizer: PreTrainedTokenizerBase,
    style: str | None = None,
    delimiters: Sequence[str] | None = None,
    **fields: object,
) -> Template:
    """The tokenizer's chat template where it has one, the plain form otherwise, unless `style` says which. `fields` are
    more of the template's.
    """
    marks = fields | ({"delimiters": tuple(delimiters)} if delimiters is not None else {})
    if (style or ("chat" if tokenizer.chat_template else "plain")) == "chat":
        return Template(**{"style": "chat", "caption_prompt": "Describe the image.", **marks})
    return Template(**marks)


def mark_of(modality: str) -> str:
    """What marks in a user's words where a medium stands: `<image>`, `<audio>`, `<video>`."""
    return f"<{modality}>"


def soft_slots(length: int, template: Template) -> dict[str, int]:
    """How many of the soft prompt's `length` vectors stand in each of its slots."""
    if template.soft_prompt != "around":
        return {SOFT_PROMPT: length}
    return {SOFT_PROMPT: length - length // 2, SOFT_PROMPT_END: length // 2}


class Piece(NamedTuple):
    """Text on its way to ids: the template's own, or words from data; `target` when the model is to say it, `medium`
    when it marks a medium and is never said.
    """

    text: str
    from_data: bool = False
    target: bool = False
    medium: bool = False


class Prompt:
    """Turns a text into segments, in the form that one tokenizer and one template ask for.

    `modality` is that of the media ("image", "audio", "video"), whose own mark is then read too. `marks` are all that
    are; `stop_ids` are the tokens that end an answer. Raises AdapterError for a template the tokenizer can't serve.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template, modality: str = "image"):
        if template.style not in ("plain", "chat"):
            raise AdapterError(f"the template's style is {template.style!r}; it must be plain or chat")
        if template.style == "chat" and not tokenizer.chat_template:
            raise AdapterError("a chat template was asked for, but this tokenizer has none; use --template plain")
        if template.soft_prompt not in ("before", "after", "around", "first"):
            raise AdapterError(
                f"the soft prompt's place is {template.soft_prompt!r}; it must be before, after, around or first"
            )
        if template.media not in ("before", "after") or template.loss_on not in ("answer", "all"):
            raise AdapterError(
                f"the template puts media {template.media!r} the words and learns {template.loss_on!r}; it must be "
                "before or after, and answer or all"
            )
        if tokenizer.eos_token_id is None:
            raise AdapterError("this tokenizer names no end-of-text token, so no answer could end; set its eos_token")
        self.tokenizer, self.template = tokenizer, template
        self._own: dict[str, Sequence[int]] = {}  # ids of the template's own words
        self._rendered: dict[tuple, str] = {}  # what the chat template prints for turns of these roles
        self.marks = tuple(dict.fromkeys((MEDIA_MARK, mark_of(modality))))
        probe = tokenizer("a", add_special_tokens=False).input_ids  # without padding or truncation from here on
        self._core = tokenizer.backend_tokenizer if tokenizer.is_fast else None  # called by itself, in half the time
        self._adds_space = tokenizer.convert_ids_to_tokens(probe)[0].startswith("▁")
        self._bos = (tokenizer.bos_token_id,) if tokenizer("a").input_ids[0] == tokenizer.bos_token_id else ()
        self.turn_end = self._turn_end() if template.style == "chat" else (tokenizer.eos_token_id,)
        self.stop_ids = tuple(dict.fromkeys((self.turn_end[-1], tokenizer.eos_token_id)))

    def segments(
        self, turns: Sequence[dict], media: Sequence[str] = (), *, answer: bool = True, soft_prompt: bool = False
    ) -> list[Segment]:
        """Turn `turns` (dicts with `role` and `content`) about the media named in `media` into segments.

        Media stand where `<image>`, or the mark of their own modality, marks them in user turns, or before (or after)
        the first user's words when there is no mark; the soft prompt where the template says. A turn's `<box>` marks
        stand for its `boxes`, see `adapters.boxes`. A text that begins with an assistant turn is a caption: a user turn
        with the media and `caption_prompt` goes before it. With `answer=False` a last assistant turn is left out and
        the sequence ends where the model is to speak: by construction a prefix of the sequence with the answer.
        Raises AdapterError when marks and media, or boxes, differ in number, or when no assistant turn is left to train
        on.
        """
        decimals = self.template.box_decimals
        turns = [{**turn, "content": said(turn, decimals)} if turn.get("boxes") else turn for turn in turns]
        if not answer and turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if not turns or turns[0]["role"] == "assistant":
            turns.insert(0, {"role": "user", "content": self.template.caption_prompt})
        if answer and turns[-1]["role"] != "assistant":
            raise AdapterError("a text to train on must end with an assistant turn")
        contents = self._contents(turns, media)
        asked = [content for content, turn in zip(contents, turns, strict=True) if turn["role"] == "user"]
        before = self._place(asked) if soft_prompt else []
        pieces = self._chat if self.template.style == "chat" else self._plain
        return before + self._encode(pieces(turns, contents), everything=answer and self.template.loss_on == "all")

    def without_marks(self, words: str) -> str:
        """A turn's words when there is nothing to look at."""
        return _pattern(self.marks).sub("", words)

    def _place(self, asked: list[list[Segment | Piece]]) -> list[Segment]:
        """Put the soft prompt into the first of the user turns' contents; return what stands before everything."""
        if self.template.soft_prompt == "first":
            return [Segment(slot=SOFT_PROMPT)]
        content = asked[0]
        words = [i for i, part in enumerate(content) if getattr(part, "from_data", False)]
        media = [i for i, part in enumerate(content) if isinstance(part, Segment)]
        last = media[-1] + 1 + bool(self.template.delimiters[1]) if media else 0
        start = {"before": 0, "after": last, "around": words[0] if words else len(content)}[self.template.soft_prompt]
        if self.template.soft_prompt == "around":
            content.insert(words[-1] + 1 if words else len(content), Segment(slot=SOFT_PROMPT_END))
        content.insert(start, Segment(slot=SOFT_PROMPT))
        return []

    def _contents(self, turns: list[dict], media: Sequence[str]) -> list[list[Segment | Piece]]:
        """Each turn's content as words and slots, in order."""
        waiting = list(media)
        asked = [turn["content"] for turn in turns if turn["role"] == "user"] if media else []
        marks = [found for words in asked for found in _pattern(self.marks).findall(words)]
        self._check(marks, media)
        contents: list[list[Segment | Piece]] = []
        for turn in turns:
            words = turn["content"]
            if turn["role"] == "user" and marks:
                first, *others = _pattern(self.marks).split(words)
                content = [Piece(first.rstrip(), from_data=True)]
                for found, rest in zip(others[::2], others[1::2], strict=True):
                    content += [*self._slot(self._take(found, waiting)), Piece(rest.strip(), from_data=True)]
            elif turn["role"] == "user":
                shown = [part for medium in waiting for part in self._slot(medium)]
                asked = [Piece(words, from_data=True)]
                content = asked + shown if self.template.media == "after" else shown + asked
                waiting = []
            else:
                content = [Piece(words, from_data=True, target=turn["role"] == "assistant")]
            contents.append([part for part in content if isinstance(part, Segment) or part.text])
        return contents

    def _check(self, marks: Sequence[str], media: Sequence[str]) -> None:
        if marks and len(marks) != len(media):
            raise AdapterError(f"a text has {len(marks)} {' or '.join(self.marks)} marks for {len(media)} media")

    def _take(self, mark: str, waiting: list[str]) -> str:
        """The next of the media that a mark may stand for."""
        return waiting.pop(0)

    def _slot(self, medium: str) -> list[Segment | Piece]:
        before, after = (Piece(text, medium=True) for text in self.template.delimiters)
        slots: list[Segment | Piece] = [Segment(slot=medium)]
        if self.template.row_separator:
            rows, between = self.template.rows, Piece(self.template.row_separator, medium=True)
            slots = [part for k in range(rows) for part in (between, Segment(slot=medium, part=(k, rows)))][1:]
        return [before, *slots, after] if before.text or after.text else slots

    def _plain(self, turns: list[dict], contents: list[list[Segment | Piece]]) -> Iterator[Segment | Piece]:
        before, after = (Piece(text) for text in self.template.question.split("{}"))
        yield Segment(ids=self._bos)
        for i, (turn, content) in enumerate(zip(turns, contents, strict=True)):
            if turn["role"] == "assistant":
                yield from content
                yield Segment(ids=self.turn_end, target=self.template.eos)
                continue
            if i:
                yield Piece("\n")
            media = list(takewhile(lambda part: not getattr(part, "from_data", False), content))
            yield from media
            if content[len(media) :]:
                yield from (before, *content[len(media) :], after)

    def _chat(self, turns: list[dict], contents: list[list[Segment | Piece]]) -> Iterator[Segment | Piece]:
        """Before each assistant turn, what the template prints up to there if that turn were the one to generate."""
        said = 0
        for i in range(len(turns) + 1):
            if i < len(turns) and turns[i]["role"] != "assistant":
                continue
            if i == len(turns) and said == i:
                break
            rest = self._render(turns[:i], speak=True)
            if said:
                rest = rest.split(_sentinel(said - 1))[1].removeprefix(self.tokenizer.decode(self.turn_end))
            for k in range(said, i):
                piece, rest = rest.split(_sentinel(k))
                yield from (Piece(piece), *contents[k])
            yield Piece(rest)
            if i < len(turns):
                yield from contents[i]
                yield Segment(ids=self.turn_end, target=self.template.eos)
            said = i + 1

    def _render(self, turns: list[dict], speak: bool) -> str:
        form = (*(turn["role"] for turn in turns), speak)
        if form in self._rendered:
            return self._rendered[form]
        marked = [{"role": turn["role"], "content": _sentinel(i)} for i, turn in enumerate(turns)]
        try:
            # A template that can "think" first is told not to, so that the answer follows the prompt at once.
            text = self.tokenizer.apply_chat_template(
                marked, tokenize=False, add_generation_prompt=speak, enable_thinking=False
            )
        except Exception as error:  # jinja passes on whatever the template's author raises
            raise AdapterError(f"this tokenizer's chat template refuses these turns: {error}") from error
        if any(text.count(_sentinel(i)) != 1 for i in range(len(turns))):
            raise AdapterError("this tokenizer's chat template doesn't print every turn once; use --template plain")
        self._rendered[form] = text
        return text

    def _turn_end(self) -> tuple[int, ...]:
        """What the template puts after an assistant turn, up to its first special token; else the end-of-text token."""
        text = self._render([{"role": "user"}, {"role": "assistant"}], speak=False)
        ids = tuple(self._ids(text.split(_sentinel(1))[1], from_data=False))
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        ends = [i for i, token in enumerate(ids) if token in special]
        return ids[: ends[0] + 1] if ends else (self.tokenizer.eos_token_id,)

    def _encode(self, pieces: Iterator[Segment | Piece], everything: bool = False) -> list[Segment]:
        """Tokenise each piece on its own; a space at a piece's end goes to the words after it, as tokenizers expect.

        With `everything` all words are targets. The first id of a text never is: nothing comes before it to say it.
        """
        merged: list[Segment] = []
        ids: list[int] = []
        target, space = False, ""

        def close() -> None:
            if ids:
                merged.append(Segment(tuple(ids), target=target))
                ids.clear()

        for piece in pieces:
            if isinstance(piece, Segment):
                if piece.slot:
                    close()
                    merged.append(piece)
                    space = ""
                    continue
                own, its_target = piece.ids, piece.target
            else:
                words = piece.text
                if piece.from_data:
                    words, space = space + words, ""
                else:
                    stem = words.rstrip(" ")
                    trailing = words[len(stem) :]
                    words = space + stem if stem else ""
                    space = trailing if stem else space + trailing
                own = self._ids(words, piece.from_data)
                its_target = piece.target or (everything and not piece.medium)
            if own and its_target != target:
                close()
                target = its_target
            ids += own
        close()
        if merged and merged[0].target:
            first = merged[0].ids
            merged[:1] = [Segment(ids=first[:1]), *([Segment(ids=first[1:], target=True)] if first[1:] else [])]
        return merged

    def _ids(self, words: str, from_data: bool) -> Sequence[int]:
        """Encode words as they stand inside a text: without the space that SentencePiece puts before a first word."""
        if not words:
            return ()
        if from_data:
            return self._tokenise(words, from_data)
        if words not in self._own:
            self._own[words] = self._tokenise(words, from_data)
        return self._own[words]

    def _tokenise(self, words: str, from_data: bool) -> list[int]:
        if self._adds_space:
            lead, ids = self._plain_ids("\n", from_data), self._plain_ids("\n" + words, from_data)
            if ids[: len(lead)] == lead:
                return ids[len(lead) :]
        return self._plain_ids(words, from_data)

    def _plain_ids(self, words: str, from_data: bool) -> list[int]:
        if self._core is None:
            return self.tokenizer(words, add_special_tokens=False, split_special_tokens=from_data).input_ids
        self._core.encode_special_tokens = from_data
        return self._core.encode_batch_fast([words], add_special_tokens=False)[0].ids  # fast: without offsets


@cache
def _pattern(marks: tuple[str, ...]) -> re.Pattern:
    return re.compile(f"({'|'.join(marks)})")


def _sentinel(i: int) -> str:
    """Stands for turn i's content while the chat template is rendered; private-use characters that no data holds."""
    return f"\ue000{i}\ue001"
