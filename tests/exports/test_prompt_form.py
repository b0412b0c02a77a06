"""The exported chat template: the prompt that the adapter was trained with, token for token."""

import re

import pytest
import tiny

from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template
from periscope.exports.prompt_form import IMAGE_TOKEN, MTMD_MARKER, chat_template, id_differences

DELIMITERS = (("<image>", "</image>"), ("Scene: ", "\n"), ("", ""))
BYTE_LEVEL = ("smollm", "smollm3", "opt", "gpt_neox", "qwen2", "qwen3", "olmo2", "mamba")


FORMS: tuple[dict, ...] = (
    {"preamble": "A chat. ", "question": "USER: <image>\n{} ASSISTANT: ", "between": ""},
    {"caption_prompt": "Describe it.", "caption_form": "{}\n", "question": "In: {}\nOut: ", "own_space": True},
)


def prompts(family: str):
    """A family's prompts in every style its tokenizer has, with several delimiters and places of the picture."""
    tokenizer = tiny.FAMILIES[family][1]()
    for form in FORMS:
        yield Prompt(tokenizer, default_template(tokenizer, "plain", ("", ""), **form))
    for style in ("plain", "chat") if tokenizer.chat_template else ("plain",):
        for delimiters in DELIMITERS:
            for media in ("before", "after"):
                yield Prompt(tokenizer, default_template(tokenizer, style, delimiters, media=media))


@pytest.mark.parametrize("marker", [IMAGE_TOKEN, MTMD_MARKER])
@pytest.mark.parametrize("family", BYTE_LEVEL)
def test_the_rendered_string_has_the_ids_of_training(family, marker):
    for prompt in prompts(family):
        assert id_differences(prompt, chat_template(prompt, marker), marker) == [], prompt.template


def test_a_difference_is_named(marker=MTMD_MARKER):
    tokenizer = tiny.sentencepiece_like(chat=tiny.INST)
    prompt = Prompt(tokenizer, default_template(tokenizer, "chat", as_string=False))
    found = id_differences(prompt, chat_template(prompt, marker), marker, ["What?"])
    assert len(found) == 1 and found[0].startswith("after the picture in 'What?': ['<', '/image>'")


def test_a_wrong_template_is_found():
    tokenizer = tiny.FAMILIES["qwen2"][1]()
    prompt = Prompt(tokenizer, default_template(tokenizer, "chat", ("Scene:", "\n")))
    assert id_differences(prompt, tokenizer.chat_template, MTMD_MARKER)


@pytest.mark.parametrize("marker", [IMAGE_TOKEN, MTMD_MARKER])
def test_the_date_of_training_and_what_stood_before_an_answer_are_exported(marker):
    chat = "Today is {{ strftime_now('%d %b %Y') }}. " + re.sub(r"{% if enable_thinking.*?{% endif %}", "<think>\n",
                                                               tiny.CHATML, flags=re.S)  # fmt: skip
    tokenizer = tiny.byte_level(chat=chat, eos="<|im_end|>")
    prompt = Prompt(tokenizer, default_template(tokenizer, "chat", ("", ""), date="2025-02-03"))
    template = chat_template(prompt, marker)
    assert id_differences(prompt, template, marker) == []
    words = [{"role": "user", "content": "What?"}]
    text = tokenizer.apply_chat_template(words, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert text.startswith("Today is 03 Feb 2025. ") and text.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_conversations_are_rendered_as_in_training(style):
    chat = re.sub(
        r"{% if enable_thinking.*?{% endif %}", "", tiny.CHATML, flags=re.S
    )  # empty thoughts stand in the last turn only
    tokenizer = tiny.byte_level(chat=chat, eos="<|im_end|>")
    prompt = Prompt(tokenizer, default_template(tokenizer, style, ("Scene:", "\n")))
    turns = [
        {"role": "user", "content": "Which is larger, <image> or <image> ?"},
        {"role": "assistant", "content": "The first one."},
        {"role": "user", "content": "Why?"},
    ]
    ours = prompt.segments(turns, ["a", "b"], answer=False)
    parts = [{"type": "text", "text": "Which is larger,"}, {"type": "image"}, {"type": "text", "text": "or"}]
    parts += [{"type": "image"}, {"type": "text", "text": "?"}]
    for marker, content in (
        (IMAGE_TOKEN, parts),
        (MTMD_MARKER, turns[0]["content"].replace("<image>", "<__media_xYz1__>")),
    ):
        messages = [{"role": "user", "content": content}, *turns[1:]]
        text = tokenizer.apply_chat_template(
            messages, chat_template=chat_template(prompt, marker), tokenize=False, add_generation_prompt=True
        )
        whole = text.replace("<__media_xYz1__>", IMAGE_TOKEN).split(IMAGE_TOKEN)
        stretches = [[]]
        for segment in ours:
            if segment.slot:
                stretches.append([])
            else:
                stretches[-1] += segment.ids
        assert [tokenizer(part, add_special_tokens=False).input_ids for part in whole] == stretches
