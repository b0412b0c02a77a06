"""What was said before has the ids that the same turns have in training."""

import pytest
import tiny

from periscope.adapters.composed import ComposedPrompt
from periscope.adapters.generation.conversation import Conversation, Message
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template
from periscope.errors import AdapterError

TOKENIZERS = {
    "byte-level": lambda: tiny.byte_level(),
    "adds bos": lambda: tiny.byte_level(bos=True),
    "leading space": lambda: tiny.sentencepiece_like(),
    "chat, turn end is eos": lambda: tiny.byte_level(chat=tiny.CHATML, eos="<|im_end|>"),
    "chat, turn end isn't eos": lambda: tiny.byte_level(chat=tiny.CHATML, eos="</s>"),
    "chat, template prints bos": lambda: tiny.sentencepiece_like(chat=tiny.INST),
}
FIELDS = {
    "usual": {},
    "media after": {"media": "after"},
    "no delimiters": {"delimiters": ("", "")},
    "around": {"soft_prompt": "around", "caption_prompt": "Describe it."},
    "own question": {"question": "USER: {} ASSISTANT: ", "loss_on": "all"},
}
SAID = [("What colour is the star?", "blue"), ("And  the dog?", "the lazy dog"), ("where", "in the centre")]


def flat(segments) -> list:
    """Ids with slots as names."""
    return [x for segment in segments for x in ([segment.slot] if segment.slot else segment.ids)]


def composed(tokenizer, **fields) -> ComposedPrompt:
    prompt = Prompt(tokenizer, default_template(tokenizer, **fields))
    return ComposedPrompt({"image": prompt}, ["image"])


def training_turns(said) -> list[dict]:
    return [
        {"role": role, "content": words}
        for pair in said
        for role, words in zip(("user", "assistant"), pair, strict=True)
        if words
    ]


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("said", [SAID, [("", "a red circle"), *SAID]], ids=["questions", "a caption first"])
def test_history_has_the_ids_of_training(make, fields, said):
    prompt = composed(make(), **fields)
    whole = flat(prompt.segments(training_turns(said), ["image:m"], soft_prompt=True))
    talk, media = Conversation(), ["image:m"]
    for question, answer in said:
        talk = talk.ask(f" {question}\n", media, prompt)
        asked = flat(talk.segments(prompt))
        assert asked == whole[: len(asked)], "a prompt is a prefix of the text with the answer"
        talk, media = talk.answer(answer), []
    assert len(whole) > len(asked) and {"image:m"} < {x for x in asked if isinstance(x, str)}


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_medium_that_comes_later_stands_with_its_message(make):
    prompt = composed(make())
    talk = Conversation((Message("system", "Be brief."),)).ask("and the dog?", ["image:a"], prompt).answer("lazy")
    talk = talk.ask("", ["image:b"], prompt).answer("a fox").ask("is <image> like it?", ["image:c"], prompt)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>\nand the dog?"},
        {"role": "assistant", "content": "lazy"},
        {"role": "user", "content": f"<image>{prompt.template.caption_prompt}"},
        {"role": "assistant", "content": "a fox"},
        {"role": "user", "content": "is <image> like it?"},
        {"role": "assistant", "content": "jumps"},
    ]
    whole, asked = flat(prompt.segments(turns, talk.media)), flat(talk.segments(prompt))
    assert asked == whole[: len(asked)] and [x for x in asked if str(x).startswith("image:")][-1] == "image:c"


def test_media_of_two_modalities_are_marked_each_with_its_own():
    tokenizer = tiny.byte_level()
    parts = {
        modality: Prompt(tokenizer, default_template(tokenizer, delimiters=(f"{modality}:", "\n")), modality)
        for modality in ("image", "audio")
    }
    prompt = ComposedPrompt(parts)
    alone = Conversation().ask("the fox", ["audio:0"], prompt)
    assert flat(alone.segments(prompt)) == flat(
        prompt.segments([{"role": "user", "content": "the fox"}], ["audio:0"], answer=False)
    )
    both = alone.answer("jumps").ask("over", ["image:1"], prompt)
    words = tokenizer.decode([x if isinstance(x, int) else tokenizer.pad_token_id for x in flat(both.segments(prompt))])
    assert "audio:<pad>\n" in words and "image:<pad>\n" in words and words.index("audio:") < words.index("image:")


def test_marks_must_fit_what_is_shown_with_them():
    prompt = composed(tiny.byte_level())
    talk = Conversation()
    with pytest.raises(AdapterError, match=r"2 marks \(<image>, <image>\), and 1 media"):
        talk.ask("<image> or <image>", ["image:0"], prompt)
    with pytest.raises(AdapterError, match="and 0 media were given"):
        talk.ask("fox", ["image:0"], prompt).answer("dog").ask("<image>?", [], prompt)
    with pytest.raises(AdapterError, match="nothing to caption"):
        talk.ask(" ", [], prompt)
    assert talk == Conversation()
