"""Templates: how turns become text, in the plain form of base models or through the tokenizer's chat template."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from periscope.adapters.limits import Count, Name, Words, WordsWithSlot
from periscope.adapters.prompting.deadline import DeadlineError, deadline
from periscope.adapters.prompting.segments import (
    MEDIA_MARK,
    REQUEST,
    SOFT_PROMPT,
    SOFT_PROMPT_END,
    Piece,
    Segment,
    is_data,
    mark_of,
)
from periscope.adapters.prompting.tokenization import PieceTokenizer
from periscope.errors import AdapterError

if TYPE_CHECKING:  # imports torch
    from transformers import PreTrainedTokenizerBase

CALLED = {
    "audio": "sound",
    "imu": "movement",
}  # in words to the language model; other modalities are called by their name
LONGEST = 10.0  # seconds of processor time that printing a prompt may take
# What opens a model's thoughts: <think>, <thought>, <seed:think>, [THINK], <|START_THINKING|>, <|begin_of_thought|>
THOUGHTS = re.compile(
    r"<(?:\w+:)?(?:think|thinking|thought|reasoning)>|\[THINK\]|<\|(?:START|begin)_(?:of_)?(?:THINKING|thinking|thought)\|>"
)
CHOICES = {
    "requests": ("drop", "keep", "question"),
    "captions": ("requested", "all"),
    "marks": ("inner", "all"),
}


@dataclass(frozen=True)
class Template:
    """How turns become text. adapter.json stores these fields.

    - `style`: "plain" for base models, "chat" for the tokenizer's own chat template.
    - `delimiters`: text before and after each image, sound or clip.
    - `caption_prompt`: the user turn of a text without a question.
    - `question`: the form of a user turn in the plain style, with one `{}`.
    - `soft_prompt`: place of the soft prompt in the first user turn: "before" the media, "after" them, "around" the
      turn's words (its second half behind them), or "first" in the sequence, before the begin-of-text token too, where
      PEFT and eP-ALM have it.
    - `media`: place of media without a mark: "before" the first user turn's words, or "after" them, so that the model
      reads the image knowing the question (task-aware encoding, Pantazopoulos et al. 2024, arXiv 2409.05395).
    - `row_separator`: text between the `rows` rows of an image's tokens, for models that can't count positions (the
      same paper, for Mamba).
    - `eos`: train the model to end its answer.
    - `loss_on`: "answer", or "all" words as eP-ALM does: questions and the template's own words too.
    - `box_decimals`: decimals of box coordinates in text.
    - `date`: "YYYY-MM-DD", what a chat template that prints today's date prints; "" is today.
    - `requests`: what becomes of the words that ask for a caption in rows as LLaVA-Pretrain's: "drop" them (the caption
      then follows `caption_prompt`), "keep" them in its place, or "question": such a row is a question like any other.
    - `captions`: which single exchanges about one medium are such rows: "requested", those with one of LLaVA's requests
      for a brief description, or "all".
    - `marks`: which marks in a user turn say where a medium stands: "inner", those among the words, because data has
      them before or after the whole turn by chance (LLaVA's code moves them to the front); or "all".
    - `as_string`: tokenize what stands between two media as one string would be, which LLaVA and llama.cpp do: with
      SentencePiece the first word has its leading space, and a space before a medium is kept.

    In the plain style:

    - `caption_form`: the form of a user turn that asks for a caption; "" is that of a question. In either form
      `<image>` says where the turn's media stand; it is left out, with one line break beside it, of a turn without any.
    - `preamble`: what a text begins with, such as a system sentence.
    - `between`: what stands between an answer and the next user turn.
    - `own_space`: whether a space at the end of `question` or `caption_form` is a token of its own, as where prompt and
      answer are tokenized apart (Cobra, VL-Mamba), or belongs to the answer's first word.
    - `end`: what ends an answer; "" is the end-of-text token.
    """

    style: Name = "plain"
    delimiters: tuple[Words, Words] = ("<image>", "</image>")
    caption_prompt: Words = ""
    question: WordsWithSlot = "Question: {} Answer: "
    soft_prompt: Name = "before"
    media: Name = "before"
    row_separator: Words = ""
    rows: Count = 0
    eos: bool = True
    loss_on: Name = "answer"
    box_decimals: Annotated[int, Meta(ge=0, le=20)] = 2
    date: Annotated[str, Meta(pattern=r"^(\d{4}-\d\d-\d\d)?\Z")] = ""
    requests: Name = "drop"
    captions: Name = "requested"
    marks: Name = "inner"
    as_string: bool = True
    caption_form: Words = ""
    preamble: Words = ""
    between: Words = "\n"
    own_space: bool = False
    end: Words = ""

    @property
    def captions_read(self) -> str:
        """Which single exchanges about one medium are read as captions: "requested", "all", or "" for none."""
        return "" if self.requests == "question" else self.captions

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; without `date` where the template prints none."""
        values = asdict(self)
        return values if self.date else {name: value for name, value in values.items() if name != "date"}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Template":
        """The inverse of `to_dict`."""
        return cls(**{**fields, "delimiters": tuple(fields["delimiters"])})


def default_template(
    tokenizer: "PreTrainedTokenizerBase",
    style: str | None = None,
    delimiters: Sequence[str] | None = None,
    modality: str = "image",
    **fields: Any,
) -> Template:
    """The tokenizer's chat template where it has one and the plain form otherwise, unless `style` says which. `fields`
    sets other fields of `Template`. Delimiters and a chat template's caption prompt name the `modality`, and today's
    date is kept for a chat template that prints it.
    """
    fields["delimiters"] = (mark_of(modality), f"</{modality}>") if delimiters is None else tuple(delimiters)
    if (style or ("chat" if tokenizer.chat_template else "plain")) == "chat":
        if "strftime_now" in str(tokenizer.chat_template):
            fields = {"date": f"{datetime.now():%Y-%m-%d}", **fields}
        return Template(
            **{"style": "chat", "caption_prompt": f"Describe the {CALLED.get(modality, modality)}.", **fields}
        )
    return Template(**fields)


def check_template(template: Template, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise AdapterError for a template with unknown choices, or one that the tokenizer can't serve."""
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
            f"the template puts media {template.media!r} the words and has its loss on {template.loss_on!r}; these "
            "must be before or after, and answer or all"
        )
    _check_choices(template)
    if template.date:
        try:
            datetime.strptime(template.date, "%Y-%m-%d")
        except ValueError:
            raise AdapterError(f"the template's date is {template.date!r}; it must be a day, as 2026-01-31") from None


def _check_choices(template: Template) -> None:
    for name, allowed in CHOICES.items():
        if (chosen := getattr(template, name)) not in allowed:
            raise AdapterError(f"the template's {name} is {chosen!r}; it must be {' or '.join(allowed)}")
    if template.caption_form and template.caption_form.count("{}") != 1:
        raise AdapterError(f"the template's caption_form is {template.caption_form!r}; it needs one {{}}")


def soft_slots(length: int, template: Template) -> dict[str, int]:
    """How many of the soft prompt's `length` vectors stand in each of its slots."""
    if template.soft_prompt != "around":
        return {SOFT_PROMPT: length}
    return {SOFT_PROMPT: length - length // 2, SOFT_PROMPT_END: length // 2}


class PlainTemplate:
    """The form of base models: `question` around each user turn, the end-of-text token after each answer. A system turn
    is text on a line of its own.
    """

    def __init__(self, text: PieceTokenizer, template: Template):
        self.template, self.text = template, text
        end = tuple(text.ids(template.end, from_data=False))
        self.turn_end: tuple[int, ...] = end or (text.tokenizer.eos_token_id,)
        self.earlier_turn_end = self.turn_end

    def lay_out(self, roles: Sequence[str], contents: Sequence[list[Segment | Piece]]) -> Iterator[Segment | Piece]:
        """The pieces and slots of a conversation, in order. `contents` are the turns' words and slots."""
        yield Segment(ids=self.text.bos_ids)
        yield Piece(self.template.preamble)
        for i, (role, content) in enumerate(zip(roles, contents, strict=True)):
            if role == "assistant":
                yield from content
                yield Segment(ids=self.turn_end, target=self.template.eos)
                continue
            if i:
                yield Piece(self.template.between)
            if role == "system":
                yield from content
            else:
                form = self.template.caption_form if role == REQUEST else ""
                yield from self._user_turn(form or self.template.question, content)

    def _user_turn(self, form: str, content: list[Segment | Piece]) -> Iterator[Segment | Piece]:
        media = list(takewhile(lambda item: not is_data(item), content))
        words = content[len(media) :]
        if not words:
            yield from media
            return
        if MEDIA_MARK not in form:
            yield from media
        elif not media:
            form = re.sub(rf"{MEDIA_MARK}\n|\n{MEDIA_MARK}|{MEDIA_MARK}", "", form, count=1)
        *parts, last = re.split(rf"({MEDIA_MARK}|\{{\}})", form)
        for part in parts:
            yield from {MEDIA_MARK: media, "{}": words}.get(part, [Piece(part)])
        stem = last.rstrip(" ") if self.template.own_space else last
        yield Piece(stem)
        if stem != last:
            yield Segment(ids=tuple(self.text.ids(last[len(stem) :], from_data=False)))


class ChatTemplate:
    """The tokenizer's own chat template, applied around turns.

    The template is rendered with a sentinel in the place of each turn's content. What it prints between the sentinels
    is the template's own text, tokenized with special tokens; the contents themselves never pass through it.

    `turn_end` are the ids after the last answer, `earlier_turn_end` those after an answer that another turn follows
    (gpt-oss ends the last one with a token of its own).

    Raises AdapterError for a chat template that refuses a conversation, or doesn't print every turn once.
    """

    def __init__(self, text: PieceTokenizer, template: Template):
        self.template, self.tokenizer, self.text = template, text.tokenizer, text
        self._rendered: dict[tuple[object, ...], str] = {}  # by roles
        self._takes_system: bool | None = None  # not tried yet
        last, earlier = self._find_turn_ends()
        self._earlier_end_text = earlier
        end = (self.tokenizer.eos_token_id,)
        self.turn_end: tuple[int, ...] = tuple(text.ids(last, from_data=False)) or end
        self.earlier_turn_end: tuple[int, ...] = tuple(text.ids(earlier, from_data=False)) or end

    @property
    def opening(self) -> str:
        """What stands between the template's generation prompt and an answer."""
        before, prompt = self._up_to_answer(["user"]), self._render(["user"], generate=True)
        return before.removeprefix(prompt) if before.startswith(prompt) else ""

    def lay_out(self, roles: Sequence[str], contents: Sequence[list[Segment | Piece]]) -> Iterator[Segment | Piece]:
        """The pieces and slots of a conversation, in order. `contents` are the turns' words and slots.

        Before each assistant turn stands what the template prints up to there when that turn is the one to generate, so
        a prompt is a prefix of the training text. Where the template knows no system turn, or puts it before the last
        question and not the first, the system's words begin the first user turn.
        """
        roles = ["user" if role == REQUEST else role for role in roles]
        if roles[:2] == ["system", "user"] and not self._system_is_printed():
            system, question, *others = contents
            roles, contents = roles[1:], [[*system, Piece("\n\n"), *question], *others]
        done = 0  # turns laid out so far
        for i in range(len(roles) + 1):
            if i < len(roles) and roles[i] != "assistant":
                continue
            if i == len(roles) and done == i:
                break
            rest = self._up_to_answer(roles[:i])
            if done:
                rest = rest.split(_sentinel(done - 1))[1].removeprefix(self._earlier_end_text)
            for k in range(done, i):
                piece, rest = rest.split(_sentinel(k))
                yield from (Piece(piece), *contents[k])
            yield Piece(rest)
            if i < len(roles):
                yield from contents[i]
                end = self.turn_end if i == len(roles) - 1 else self.earlier_turn_end
                yield Segment(ids=end, target=self.template.eos)
            done = i + 1

    def _system_is_printed(self) -> bool:
        """Whether the template prints a system turn before the first question, whatever follows."""
        if self._takes_system is None:
            try:
                self._render(["system", "user", "assistant"], generate=False)
                self._render(["system", "user", "assistant", "user"], generate=True)
                self._takes_system = True
            except AdapterError:
                self._takes_system = False
        return self._takes_system

    def _up_to_answer(self, roles: Sequence[str]) -> str:
        """What stands before the answer to turns with these roles, rendered with sentinels.

        That is the template's generation prompt with whatever the template prints between that and an answer: Llama
        2's space, gpt-oss' channel header. A generation prompt that opens `<think>` (DeepSeek-R1) gets an empty block
        (arXiv 2504.09858), as Qwen3's own does when told not to think.
        """
        asked = self._render(roles, generate=True)
        turns = len(roles)
        answered = self._render([*roles, "assistant"], generate=False).split(_sentinel(turns))[0]
        if answered.startswith(asked):
            asked = answered
        opened = asked.split(_sentinel(turns - 1))[-1]
        if marks := THOUGHTS.findall(opened):
            close = _closing(marks[-1])
            if opened.rfind(close) < opened.rfind(marks[-1]):
                asked = asked.rstrip("\n") + f"\n\n{close}\n\n"
        return asked

    def _render(self, roles: Sequence[str], generate: bool) -> str:
        form = (*roles, generate)
        if form in self._rendered:
            return self._rendered[form]
        marked = [{"role": role, "content": _sentinel(i)} for i, role in enumerate(roles)]
        template = None  # the tokenizer's own
        if self.template.date:
            template = with_date(self.tokenizer.get_chat_template(), self.template.date)
        try:
            # A template with a thinking mode is told not to use it, so that the answer follows the prompt at once.
            with deadline(LONGEST):
                text = self.tokenizer.apply_chat_template(
                    marked,
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=generate,
                    enable_thinking=False,
                    thinking=False,
                )
        except DeadlineError as error:
            raise AdapterError(
                f"this tokenizer's chat template takes too long ({error}), as if it never ended; use --template plain"
            ) from error
        except Exception as error:  # Jinja passes on whatever the template's author raises
            raise AdapterError(f"this tokenizer's chat template refuses these turns: {error}") from error
        assert isinstance(text, str)
        places = [text.find(_sentinel(i)) for i in range(len(roles))]
        if places != sorted(places) or any(text.count(_sentinel(i)) != 1 for i in range(len(roles))):
            raise AdapterError(
                "this tokenizer's chat template doesn't print every turn once, in order; use --template plain"
            )
        self._rendered[form] = text
        return text

    def _find_turn_ends(self) -> tuple[str, str]:
        """What the template prints after the last answer, and after one that a question follows, each up to its first
        special token; "" where it ends answers with none.
        """
        last = self._up_to_special(self._render(["user", "assistant"], generate=False).split(_sentinel(1))[1])
        try:
            talk = self._render(["user", "assistant", "user"], generate=True)
        except AdapterError:  # it may take a single question
            return last, last
        opening, _, rest = talk.partition(_sentinel(0))
        behind_question, _, rest = rest.partition(_sentinel(1))
        found = self._up_to_special(rest.partition(_sentinel(2))[0])
        token = found.strip()
        ends_turns = found == self._up_to_special(behind_question) or token not in opening
        if token in self.tokenizer.get_vocab() and ends_turns:
            return last or found, found
        return last, last  # that token begins the next turn

    def _up_to_special(self, text: str) -> str:
        """`text` up to the end of its first special token, "" without one."""
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        tokens = [id_ for id_ in self.text.ids(text, from_data=False) if id_ in special]
        if not tokens:
            return ""
        token = str(self.tokenizer.convert_ids_to_tokens(tokens[0]))
        return text.partition(token)[0] + token


def _closing(mark: str) -> str:
    """What closes the thoughts that `mark` opens."""
    if mark.startswith("<|"):
        return mark.replace("START", "END").replace("begin", "end")
    return f"{mark[0]}/{mark[1:]}"


def with_date(template: str, date: str) -> str:
    """A chat template that prints `date`, YYYY-MM-DD, where it would print today's.

    Jinja before it defines `strftime_now`, which templates print a date with, and hides the one that other programs
    define; a Python function can't be passed to a template.
    """
    day = datetime.fromisoformat(date)
    printed = {f"%-{letter}": day.strftime(f"%{letter}").lstrip("0") or "0" for letter in "dmHIMSjy"}
    printed |= {"%e": f"{day.day:>2}", "%F": date, "%D": day.strftime("%m/%d/%y"), "%h": day.strftime("%b")}
    printed |= {"%T": "00:00:00", "%R": "00:00", "%u": str(day.isoweekday())}
    printed |= {f"%{letter}": day.strftime(f"%{letter}") for letter in "aAbBcdfGHIjmMpSUVwWxXyYzZ%"}
    used = {directive: text for directive, text in printed.items() if directive in template}
    replaced = "".join(f"|replace({directive!r}, {text!r})" for directive, text in used.items())
    return "{%- macro strftime_now(format) -%}{{ format" + replaced + " }}{%- endmacro -%}" + template


def _sentinel(turn: int) -> str:
    """Stands for a turn's content while the chat template is rendered: private-use characters that no data holds."""
    return f"\ue000{turn}\ue001"
