"""Turns to segments, per kind of tokenizer: the prompt is a prefix of the training text, and what is a target."""

from dataclasses import replace

import pytest
import tiny

from adapters import AdapterError
from adapters.prompt import SOFT_PROMPT, SOFT_PROMPT_END, Prompt, Template, default_template, soft_slots

TOKENIZERS = {
    "byte-level": lambda: tiny.byte_level(),
    "adds bos": lambda: tiny.byte_level(bos=True),
    "no pad": lambda: tiny.byte_level(pad=False),
    "leading space": lambda: tiny.sentencepiece_like(),
    "think block, turn end is eos": lambda: tiny.byte_level(chat=tiny.CHATML, eos="<|im_end|>"),
    "think block, turn end isn't eos": lambda: tiny.byte_level(chat=tiny.CHATML, eos="</s>"),
    "template prints bos": lambda: tiny.sentencepiece_like(chat=tiny.INST),
}
CAPTION = [{"role": "assistant", "content": "a red circle"}]
QUESTION = [{"role": "user", "content": "What colour is the star?"}, {"role": "assistant", "content": "blue"}]
TALK = [*QUESTION, {"role": "user", "content": "and the dog"}, {"role": "assistant", "content": "the lazy dog"}]


@pytest.fixture(params=TOKENIZERS)
def prompt(request):
    tokenizer = TOKENIZERS[request.param]()
    return Prompt(tokenizer, default_template(tokenizer))


def flat(segments):
    """Ids with slots as names."""
    return [x for s in segments for x in ([s.slot] if s.slot else s.ids)]


def targets(segments):
    return [i for s in segments if s.target for i in s.ids]


@pytest.mark.parametrize("turns", [CAPTION, QUESTION, TALK])
def test_the_prompt_is_a_prefix_of_the_training_text(prompt, turns):
    for soft in (False, True):
        whole = prompt.segments(turns, ["m"], soft_prompt=soft)
        asked = prompt.segments(turns, ["m"], answer=False, soft_prompt=soft)
        assert flat(whole)[: len(flat(asked))] == flat(asked)
        assert not any(s.target for s in asked[len(asked) - 1 :])
        rest = flat(whole)[len(flat(asked)) :]
        assert prompt.tokenizer.decode(rest[: -len(prompt.turn_end)]).strip() == turns[-1]["content"]
        assert tuple(rest[-len(prompt.turn_end) :]) == prompt.turn_end and prompt.turn_end[-1] in prompt.stop_ids


def test_every_answer_of_a_conversation_is_a_target(prompt):
    said = prompt.tokenizer.decode(targets(prompt.segments(TALK, ["m"])), skip_special_tokens=True)
    assert "blue" in said and "the lazy dog" in said and "colour" not in said


def test_one_bos_at_most_and_only_at_the_start(prompt):
    ids = flat(prompt.segments(TALK, ["m"]))
    bos = prompt.tokenizer.bos_token_id
    assert ids.count(bos) <= 1 and bos not in ids[1:]
    assert (ids[0] == bos) == (prompt.tokenizer("a").input_ids[0] == bos or (prompt.template.style == "chat" and
                               "bos_token" in prompt.tokenizer.chat_template))  # fmt: skip


def test_words_from_data_are_never_special(prompt):
    caption = [{"role": "assistant", "content": "a </s> red <|im_end|> circle"}]
    said = targets(prompt.segments(caption, ["m"]))
    assert not set(said[: -len(prompt.turn_end)]) & set(prompt.stop_ids)
    assert prompt.tokenizer.decode(said[: -len(prompt.turn_end)]).strip() == "a </s> red <|im_end|> circle"


def test_media_stand_where_they_are_marked(prompt):
    turns = [{"role": "user", "content": "the <image> fox and <image>"}, {"role": "assistant", "content": "dog"}]
    segments = prompt.segments(turns, ["one", "two"])
    assert [s.slot for s in segments if s.slot] == ["one", "two"]
    between = segments[[s.slot for s in segments].index("one") + 1]
    assert "fox and" in prompt.tokenizer.decode(between.ids)
    with pytest.raises(AdapterError, match="2 <image> marks for 1 media"):
        prompt.segments(turns, ["one"])
    assert [s.slot for s in prompt.segments(TALK, ["one", "two"]) if s.slot] == ["one", "two"]
    assert not any(s.slot for s in prompt.segments(TALK, []))


def test_space_before_an_answer_belongs_to_the_answer():
    for tokenizer in (tiny.byte_level(), tiny.sentencepiece_like()):
        prompt = Prompt(tokenizer, Template(delimiters=("", "")))
        ids = flat(prompt.segments(QUESTION, []))
        text = "Question: What colour is the star? Answer: blue</s>"
        assert ids == tokenizer(text).input_ids[len(tokenizer("").input_ids) - len(prompt._bos) :] or (
            tokenizer.decode(ids, skip_special_tokens=False).removeprefix("<s>").strip() == text
        )
        assert tokenizer.convert_ids_to_tokens(targets(prompt.segments(QUESTION, []))[:1])[0][0] in "Ġ▁"


def test_a_template_that_hides_turns_and_a_tokenizer_without_an_end_are_refused():
    silent = tiny.byte_level(chat="{% for m in messages %}{{ m.role }}{% endfor %}")
    with pytest.raises(AdapterError, match="doesn't print every turn"):
        Prompt(silent, default_template(silent))
    endless = tiny.byte_level()
    endless.eos_token = None
    with pytest.raises(AdapterError, match="end-of-text"):
        Prompt(endless, default_template(endless))
    with pytest.raises(AdapterError, match="has none"):
        Prompt(tiny.byte_level(), Template(style="chat"))
    with pytest.raises(AdapterError, match="assistant turn"):
        Prompt(tiny.byte_level(), Template()).segments(QUESTION[:1], ["m"])


@pytest.mark.parametrize("delimiters", [("<image>", "</image>"), ("", "")])
def test_the_soft_prompt_stands_where_it_is_asked_for(prompt, delimiters):
    order = {}
    for place in ("before", "after", "around"):
        template = replace(prompt.template, soft_prompt=place, delimiters=delimiters)
        segments = Prompt(prompt.tokenizer, template).segments(QUESTION, ["m"], soft_prompt=True)
        slots = [s.slot for s in segments if s.slot]
        assert slots == {
            "before": [SOFT_PROMPT, "m"], "after": ["m", SOFT_PROMPT], "around": ["m", SOFT_PROMPT, SOFT_PROMPT_END]
        }[place]  # fmt: skip
        order[place] = [s for s in segments if s.slot not in (SOFT_PROMPT, SOFT_PROMPT_END)]
        said = prompt.tokenizer.decode([i for s in order[place] for i in s.ids])
        words = QUESTION[0]["content"]
        assert words in said
        if place == "around":
            at = [s.slot for s in segments].index(SOFT_PROMPT)
            assert words in prompt.tokenizer.decode(segments[at + 1].ids) and segments[at + 2].slot == SOFT_PROMPT_END
    with pytest.raises(AdapterError, match="soft prompt's place is 'beside'"):
        Prompt(prompt.tokenizer, replace(prompt.template, soft_prompt="beside"))


def test_both_halves_of_a_soft_prompt_are_counted():
    assert soft_slots(5, Template(soft_prompt="around")) == {SOFT_PROMPT: 3, SOFT_PROMPT_END: 2}
    assert soft_slots(5, Template()) == {SOFT_PROMPT: 5}
