"""From the turns of a conversation to segments of token ids: one function for training and for generation.

Text is split at media before it is tokenized, so there are no placeholder ids and nothing is counted on strings. How
the chat template is applied is in `template.py`; how text becomes ids is in `tokenization.py`.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from periscope.adapters.prompting.boxes import turn_text
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
from periscope.adapters.prompting.template import ChatTemplate, PlainTemplate, Template, check_template
from periscope.adapters.prompting.tokenization import PieceTokenizer
from periscope.errors import AdapterError

USER = ("user", REQUEST)  # roles of the turns in which media stand

Turn = Mapping[str, Any]  # {"role": "system", "user", "request" or "assistant", "content": text, "boxes": optional}


class Prompt:
    """Turns conversations into segments, in the form that one tokenizer and one template ask for.

    `modality` is "image", "audio" or "video"; its mark is read as well as `<image>`, and `marks` holds both. `turn_end`
    are the ids after the last answer, `stop_ids` the tokens that end generation. `start_ids` is the token that a text
    begins with where nothing else would precede its first words: the tokenizer's begin-of-text token, or its
    end-of-text token where it has none (as GPT-2 separates documents).

    Raises AdapterError for a template that the tokenizer can't serve.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template, modality: str = "image"):
        check_template(template, tokenizer)
        self.tokenizer, self.template, self.modality = tokenizer, template, modality
        self.marks: tuple[str, ...] = tuple(dict.fromkeys((MEDIA_MARK, mark_of(modality))))
        self.text = PieceTokenizer(tokenizer)
        form = ChatTemplate if template.style == "chat" else PlainTemplate
        self.form: ChatTemplate | PlainTemplate = form(self.text, template)
        self.turn_end = self.form.turn_end
        ends = (self.turn_end[-1], self.form.earlier_turn_end[-1], tokenizer.eos_token_id)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.start_ids: tuple[int, ...] = (start,)

    def with_template(self, template: Template) -> "Prompt":
        """The same with another template."""
        return Prompt(self.tokenizer, template, self.modality)

    def segments(
        self,
        turns: Sequence[Turn],
        media: Sequence[str] = (),
        *,
        answer: bool = True,
        soft_prompt: bool = False,
        start: bool = False,
    ) -> list[Segment]:
        """Turn `turns` about the media named in `media` into segments.

        Media stand where `<image>`, or the mark of their own modality, marks them in user turns; without marks, before
        (or after) the first user turn's words. Marks at a turn's edges alone (see `Template.marks`) say no more than
        that it is about these media. `<box>` marks stand for a turn's `boxes`. A text that begins with an assistant
        turn, system turns aside, is a caption: a turn that asks for it, with the media and `caption_prompt`, is put
        before it. With `answer=False` a last assistant turn is left out and the sequence ends where the model is to
        answer: by construction a prefix of the sequence with the answer. `start` puts `start_ids` first, for a text
        whose first words would have nothing before them to be predicted from (see `needs_start`).

        Raises AdapterError when marks and media, or marks and boxes, differ in number, or when no assistant turn is
        left to train on.
        """
        decimals = self.template.box_decimals
        turns = [{**turn, "content": turn_text(turn, decimals)} if turn.get("boxes") else turn for turn in turns]
        if not answer and turns and turns[-1]["role"] == "assistant":
            turns.pop()
        first = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
        if first == len(turns) or turns[first]["role"] == "assistant":
            turns.insert(first, {"role": REQUEST, "content": self.template.caption_prompt})
        if answer and turns[-1]["role"] != "assistant":
            raise AdapterError("a text to train on must end with an assistant turn")
        roles, contents = [turn["role"] for turn in turns], self._contents(turns, media)
        user_contents = [content for role, content in zip(roles, contents, strict=True) if role in USER]
        before = self._place_soft_prompt(user_contents) if soft_prompt else []
        everything = answer and self.template.loss_on == "all"
        pieces = self.form.lay_out(roles, contents)
        if start:
            pieces = chain([Segment(ids=self.start_ids)], pieces)
        return before + self.text.encode(pieces, everything, self.template.as_string)

    def needs_start(self, turns: Sequence[Turn], media: Sequence[str], soft_prompt: bool = False) -> bool:
        """Whether `turns`, about `media`, need `start` when these are left out: nothing would then precede the answer,
        or the first target with the media would be none without them. Only a plain template whose tokenizer adds no
        begin-of-text token has such texts.
        """
        if self.template.style == "chat" or self.text.bos_ids:
            return False
        bare = [{**turn, "content": self.without_marks(turn["content"])} for turn in turns]
        if not turns or turns[-1]["role"] != "assistant":
            return not self.segments(bare, answer=False, soft_prompt=soft_prompt)
        with_media, without = (
            sum(len(segment.ids) for segment in self.segments(some, names, soft_prompt=soft_prompt) if segment.target)
            for some, names in ((turns, media), (bare, ()))
        )
        return without < with_media

    def without_marks(self, words: str) -> str:
        """A turn's words for a text without media."""
        return _pattern(self.marks).sub("", words)

    def _place_soft_prompt(self, user_contents: list[list[Segment | Piece]]) -> list[Segment]:
        """Put the soft prompt into the first of the user turns' contents; return what precedes the whole sequence."""
        place = self.template.soft_prompt
        if place == "first":
            return [Segment(slot=SOFT_PROMPT)]
        content = user_contents[0]
        words = [i for i, item in enumerate(content) if is_data(item)]
        media = [i for i, item in enumerate(content) if isinstance(item, Segment)]
        after_media = media[-1] + 1 + bool(self.template.delimiters[1]) if media else 0
        start = {"before": 0, "after": after_media, "around": words[0] if words else len(content)}[place]
        if place == "around":
            content.insert(words[-1] + 1 if words else len(content), Segment(slot=SOFT_PROMPT_END))
        content.insert(start, Segment(slot=SOFT_PROMPT))
        return []

    def _contents(self, turns: Sequence[Turn], media: Sequence[str]) -> list[list[Segment | Piece]]:
        """Each turn's content as words and slots, in order."""
        waiting = list(media)
        questions = [turn["content"] for turn in turns if turn["role"] in USER] if media else []
        marks = [mark for words in questions for mark in _pattern(self.marks).findall(words)]
        self._check_marks(marks, media)
        contents: list[list[Segment | Piece]] = []
        for turn in turns:
            words = turn["content"]
            content: list[Segment | Piece]
            if turn["role"] in USER and marks:
                content = self._marked(words, waiting)
            elif turn["role"] in USER:
                content = self._placed(words, waiting)
                waiting = []
            else:
                content = [Piece(words, from_data=True, target=turn["role"] == "assistant")]
            contents.append([item for item in content if isinstance(item, Segment) or item.text])
        return contents

    def _marked(self, words: str, waiting: list[str]) -> list[Segment | Piece]:
        """A user turn with the media that its marks stand for, which are taken from those `waiting`."""
        first, *others = _pattern(self.marks).split(words)
        found, texts = others[::2], [first, *others[1::2]]
        media = [self._take(mark, waiting) for mark in found]
        if self.template.marks == "inner" and (whole := _edged(texts)) is not None:
            return self._placed(whole, media)
        content: list[Segment | Piece] = [Piece(first.rstrip() if found else first, from_data=True)]
        for medium, rest in zip(media, texts[1:], strict=True):
            content += [*self._slot(medium), Piece(rest.strip(), from_data=True)]
        return content

    def _placed(self, words: str, media: Sequence[str]) -> list[Segment | Piece]:
        """A user turn with media where the template has them."""
        slots = [item for medium in media for item in self._slot(medium)]
        question: list[Segment | Piece] = [Piece(words, from_data=True)]
        return question + slots if self.template.media == "after" else slots + question

    def _check_marks(self, marks: Sequence[str], media: Sequence[str]) -> None:
        if marks and len(marks) != len(media):
            raise AdapterError(f"a text has {len(marks)} {' or '.join(self.marks)} marks for {len(media)} media")

    def _take(self, mark: str, waiting: list[str]) -> str:
        """Remove and return the next of the media that a mark may stand for."""
        return waiting.pop(0)

    def _slot(self, medium: str) -> list[Segment | Piece]:
        """The slot of one image, sound or clip with its delimiters and row separators."""
        before, after = (Piece(text, delimiter=True) for text in self.template.delimiters)
        slots: list[Segment | Piece] = [Segment(slot=medium)]
        if self.template.row_separator:
            rows, between = self.template.rows, Piece(self.template.row_separator, delimiter=True)
            slots = [item for k in range(rows) for item in (between, Segment(slot=medium, part=(k, rows)))][1:]
        return [before, *slots, after] if before.text or after.text else slots


def _edged(texts: Sequence[str]) -> str | None:
    """The words among `texts` (what stands before, between and after marks) where all marks are at their edges; None
    where one stands among the words.
    """
    worded = [text.strip() for text in texts if text.strip()]
    return None if len(texts) < 2 or len(worded) > 1 else "".join(worded)


@cache
def _pattern(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(marks)})")
