"""The adapter's prompt as one Jinja chat template, and whether other programs make the same token ids of it.

Other programs render a conversation into one string, split it at the pictures and tokenise what stands between;
Periscope tokenises the template's words and the user's words piece by piece. With most tokenizers that makes no
difference.
"""

import json
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import MEDIA_MARK
from periscope.adapters.prompting.template import ChatTemplate, Template, with_date

IMAGE_TOKEN = "<|image|>"  # not <image>, which is many an adapter's delimiter
MTMD_MARKER = "<__media__>"  # llama.cpp's; its server puts letters of its own behind "media"
QUESTIONS = ("What is in the picture?", "How many red circles are there, and where? Answer briefly.")

# A message's words: a string, or a list of parts.
_WORDS = (
    "{%- macro words(content) -%}{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}"
    "{%- if part.type == 'text' -%}{{ part.text }}{%- else -%}MARK{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)
# `ns.texts` stand around `ns.media`. llama.cpp's server joins a message's parts before the template sees them, around
# markers of which only the beginning and the end are known.
_SPLIT = {
    IMAGE_TOKEN: (
        "{%- set ns.texts = words(message.content).split(MARK) -%}{%- set ns.media = [] -%}"
        "{%- for text in ns.texts[1:] -%}{%- set ns.media = ns.media + [MARK] -%}{%- endfor -%}"
    ),
    MTMD_MARKER: (
        "{%- set ns.texts = [] -%}{%- set ns.media = [] -%}"
        "{%- set pieces = words(message.content).split('__>') -%}"
        "{%- for piece in pieces[:-1] -%}{%- set halves = piece.split('<__media') -%}"
        "{%- set ns.texts = ns.texts + [halves[0]] -%}"
        "{%- set ns.media = ns.media + ['<__media' + halves[1] + '__>'] -%}{%- endfor -%}"
        "{%- set ns.texts = ns.texts + [pieces[-1]] -%}"
    ),
}
# Spaces beside a picture aren't words: they are dropped, as in training. Pictures at the edges of the words stand where
# the adapter has them.
_JOIN = (
    "{%- set ns.lead = '' -%}{%- set ns.rest = '' -%}{%- set ns.edge = '' -%}{%- set ns.worded = 0 -%}"
    "{%- for text in ns.texts -%}{%- if text | trim -%}{%- set ns.worded = ns.worded + 1 -%}{%- endif -%}{%- endfor -%}"
    "{%- for text in ns.texts -%}"
    "{%- set text = text | trim if ns.media else text -%}"
    "{%- if text -%}{%- set ns.rest = ns.rest + text -%}{%- endif -%}"
    "{%- if not loop.last -%}{%- set shown = BEFORE + ns.media[loop.index0] + AFTER -%}"
    "{%- if INNER and ns.worded < 2 -%}{%- set ns.edge = ns.edge + shown -%}"
    "{%- elif ns.rest -%}{%- set ns.rest = ns.rest + shown -%}{%- else -%}{%- set ns.lead = ns.lead + shown -%}"
    "{%- endif -%}{%- endif -%}{%- endfor -%}"
    "{%- set ns.asked = ns.rest == CAPTION -%}"
    "{%- if BEHIND and ns.rest -%}{%- set ns.rest = ns.rest + ns.edge -%}"
    "{%- else -%}{%- set ns.lead = ns.lead + ns.edge -%}{%- endif -%}"
)
_NAMES = (
    "{%- set ns = namespace(texts=[], media=[], lead='', rest='', edge='', worded=0, asked=false, messages=[], "
    "space='') -%}"
)
_CHAT = (
    "{%- for message in messages -%}SPLIT JOIN"
    "{%- set ns.messages = ns.messages + [{'role': message.role, 'content': ns.lead + ns.rest}] -%}"
    "{%- endfor -%}{%- set messages = ns.messages -%}{%- set enable_thinking = false -%}"
    "{%- set thinking = false -%}"
)
_PLAIN = (
    "{{ BOS + PREAMBLE }}{%- for message in messages -%}SPLIT JOIN"
    "{%- if message.role == 'assistant' -%}{{ ns.space + ns.lead + ns.rest + END }}"
    "{%- else -%}{%- if not loop.first -%}{{ BETWEEN }}{%- endif -%}"
    "{%- set ns.space = '' -%}"
    "{%- if not ns.rest -%}{{ ns.lead }}{%- elif ns.asked -%}REQUEST_FORM{%- else -%}QUESTION_FORM"
    "{%- endif -%}{%- endif -%}{%- endfor -%}"
)


def chat_template(prompt: Prompt, marker: str) -> str:
    """A Jinja chat template that prints conversations in the form the adapter was trained with.

    `marker` is `IMAGE_TOKEN` for transformers or `MTMD_MARKER` for llama.cpp. Where the adapter's template is "chat" it
    goes before the tokenizer's own, which it hands messages of plain strings with the delimiters in them.
    """
    template, tokenizer = prompt.template, prompt.tokenizer
    # A space at the end of the template's own words goes to the words behind them.
    before, after = template.delimiters
    starts = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    values = {
        "BEFORE": before if template.as_string else before.rstrip(" "),
        "AFTER": after,
        "BOS": tokenizer.bos_token if starts else "",
        "PREAMBLE": template.preamble,
        "BETWEEN": template.between,
        "CAPTION": template.caption_prompt,
        "END": tokenizer.decode(list(prompt.turn_end)) if template.eos else "",
        "INNER": template.marks == "inner",
        "BEHIND": template.media == "after",
        "MARK": marker,
    }
    chat = template.style == "chat"
    text = _WORDS.replace("MARK", marker) + _NAMES + (_CHAT if chat else _PLAIN)
    text = text.replace("SPLIT ", _SPLIT[marker]).replace("JOIN", _JOIN)
    head, body = text.split("{%- endmacro -%}")
    for name, value in values.items():
        body = body.replace(name, json.dumps(value, ensure_ascii=False))
    for name, form in (("REQUEST_FORM", template.caption_form or template.question),
                       ("QUESTION_FORM", template.question)):  # fmt: skip
        body = body.replace(name, _form(form, template.own_space))
    own = _chat_form(prompt.form, template) if isinstance(prompt.form, ChatTemplate) else ""
    return head + "{%- endmacro -%}" + body + own


def _chat_form(form: ChatTemplate, template: Template) -> str:
    """The tokenizer's own chat template with the date of the training, and behind its generation prompt what stood
    there before an answer, such as an empty block of thoughts.
    """
    own = form.tokenizer.get_chat_template()
    own = with_date(own, template.date) if template.date else own
    opening = form.opening.rstrip(" ")  # a space belongs to the answer's first word
    printed = f"{{%- if add_generation_prompt -%}}{{{{ {json.dumps(opening, ensure_ascii=False)} }}}}{{%- endif -%}}"
    return own + (printed if opening else "")


def _form(form: str, own_space: bool) -> str:
    """Jinja that prints a user turn's media (`ns.lead`) and words (`ns.rest`) in a form of the plain style."""
    stem = form if own_space else form.rstrip(" ")
    slots = {MEDIA_MARK: "{{ ns.lead }}", "{}": "{{ ns.rest }}"}

    def printed(parts: str) -> str:
        pieces = re.split(rf"({MEDIA_MARK}|\{{\}})", parts)
        return "".join(
            slots.get(each) or f"{{{{ {json.dumps(each, ensure_ascii=False)} }}}}" for each in pieces if each
        )

    with_media = stem if MEDIA_MARK in form else MEDIA_MARK + stem
    without = re.sub(rf"{MEDIA_MARK}\n|\n{MEDIA_MARK}|{MEDIA_MARK}", "", stem, count=1)
    space = json.dumps(form[len(stem) :])
    return (
        f"{{%- if ns.lead -%}}{printed(with_media)}{{%- else -%}}{printed(without)}{{%- endif -%}}"
        f"{{%- set ns.space = {space} -%}}"
    )


def spoken_ids(prompt: Prompt, question: str | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after the picture that the adapter was trained to read; a caption's where there is no
    question.
    """
    turns = [] if question is None else [{"role": "user", "content": question}]
    stretches: list[list[int]] = [[]]
    for segment in prompt.segments(turns, ["picture"], answer=False):
        if segment.slot:
            stretches.append([])
        else:
            stretches[-1] += segment.ids
    before, after = stretches
    return tuple(before), tuple(after)


def whole_string_ids(
    prompt: Prompt, template: str, marker: str, question: str | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after the picture of a program that tokenises the rendered string around it."""
    rendered = prompt.tokenizer.apply_chat_template(
        messages_of(prompt.template, marker, question),
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
    )
    before, after = str(rendered).split(marker)
    return _ids(prompt.tokenizer, before, first=True), _ids(prompt.tokenizer, after)


def messages_of(template: Template, marker: str, question: str | None) -> list[dict]:
    """One user's turn with a picture, in the order the adapter was trained with."""
    words = template.caption_prompt if question is None else question
    content = words + marker if template.media == "after" else marker + words
    return [{"role": "user", "content": content}]


def id_differences(
    prompt: Prompt, template: str, marker: str, questions: Sequence[str | None] = (None, *QUESTIONS)
) -> list[str]:
    """Where whole-string tokenisation gives other ids than the adapter was trained with, as sentences; empty where it
    doesn't. A caption's prompt and `questions` are compared.
    """
    found = []
    for question in questions:
        ours, theirs = spoken_ids(prompt, question), whole_string_ids(prompt, template, marker, question)
        for side, mine, its in zip(("before", "after"), ours, theirs, strict=True):
            if mine != its:
                words = prompt.tokenizer.convert_ids_to_tokens
                what = "a caption" if question is None else repr(question)
                found.append(
                    f"{side} the picture in {what}: {words(list(mine))} in training, {words(list(its))} as one string"
                )
    return found


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, first: bool = False) -> tuple[int, ...]:
    """What stands beside a picture, tokenised with its special tokens; the first stretch begins the text."""
    bos = tokenizer.bos_token
    begun = bool(first and bos and tokenizer("a").input_ids[0] == tokenizer.bos_token_id and not text.startswith(bos))
    ids = tokenizer(text, add_special_tokens=False).input_ids if text else []
    return ((tokenizer.bos_token_id,) if begun else ()) + tuple(ids)
