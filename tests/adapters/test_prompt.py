"""Turns to segments, per kind of tokenizer: the prompt is a prefix of the training text, and what is a target."""

import sys
from dataclasses import replace
from datetime import date

import pytest
import tiny
import torch

from periscope.adapters.io.schema import migrate
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.prompting import template as template_module
from periscope.adapters.prompting.boxes import box_text, turn_text
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import SOFT_PROMPT, SOFT_PROMPT_END
from periscope.adapters.prompting.template import Template, default_template, soft_slots
from periscope.adapters.prompting.tokenization import PieceTokenizer
from periscope.adapters.splice import length_of, splice
from periscope.errors import AdapterError
from periscope.evaluation.metrics.boxes import read_box

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


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_ids_are_what_the_tokenizer_itself_gives_whatever_its_file_cuts_or_pads(make):
    class Slow(PieceTokenizer):
        def _tokenize(self, words, from_data, start=False):
            ids = self.tokenizer("\n" + words, add_special_tokens=False, split_special_tokens=from_data)
            plain = self.tokenizer(words, add_special_tokens=False, split_special_tokens=from_data)
            lead = self.tokenizer("\n", add_special_tokens=False).input_ids
            cut = self._adds_space and not start and ids.input_ids[: len(lead)] == lead
            return tuple(ids.input_ids[len(lead) :] if cut else plain.input_ids)

    cutting = make()
    cutting.backend_tokenizer.enable_truncation(3)
    cutting.backend_tokenizer.enable_padding(length=50)
    fast, slow = (Prompt(tokenizer, default_template(tokenizer)) for tokenizer in (cutting, make()))
    slow.text = Slow(slow.tokenizer)
    said = [{"role": "user", "content": "</s> what"}, {"role": "assistant", "content": "  a</s> <|im_end|>blue "}]
    for turns in (CAPTION, TALK, said, TALK):
        assert fast.segments(turns, ["m"]) == slow.segments(turns, ["m"])


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


def test_a_sound_is_marked_by_its_own_mark_or_by_that_of_any_medium():
    tokenizer = tiny.byte_level()
    template = Template(delimiters=("[", "]"))
    words = [{"role": "user", "content": "the <audio> fox and <image> <video>"}]
    sound = Prompt(tokenizer, template, "audio").segments(words, ["one", "two"], answer=False)
    assert [s.slot for s in sound if s.slot] == ["one", "two"]
    assert tokenizer.decode(sound[-1].ids) == "]<video> Answer:"
    picture = Prompt(tokenizer, template).segments(words, ["one"], answer=False)
    assert [s.slot for s in picture if s.slot] == ["one"] and "<audio>" in tokenizer.decode(picture[0].ids)
    with pytest.raises(AdapterError, match="2 <image> or <audio> marks for 1 media"):
        Prompt(tokenizer, template, "audio").segments(words, ["one"], answer=False)
    assert Prompt(tokenizer, template, "audio").without_marks(words[0]["content"]) == "the  fox and  <video>"
    assert "<image>" in tokenizer.decode(Prompt(tokenizer, template).segments(words, [], answer=False)[0].ids)


def test_space_before_an_answer_belongs_to_the_answer():
    for tokenizer in (tiny.byte_level(), tiny.sentencepiece_like()):
        prompt = Prompt(tokenizer, Template(delimiters=("", "")))
        ids = flat(prompt.segments(QUESTION, []))
        text = "Question: What colour is the star? Answer: blue</s>"
        assert ids == tokenizer(text).input_ids[len(tokenizer("").input_ids) - len(prompt.text.bos_ids) :] or (
            tokenizer.decode(ids, skip_special_tokens=False).removeprefix("<s>").strip() == text
        )
        assert tokenizer.convert_ids_to_tokens(targets(prompt.segments(QUESTION, []))[:1])[0][0] in "Ġ▁"


def test_a_template_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr(template_module, "LONGEST", 0.5)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer = tiny.sentencepiece_like(chat=loop + tiny.INST)
    before = sys.gettrace()
    with pytest.raises(AdapterError, match=r"takes too long \(more than 0.5 s\)"):
        Prompt(tokenizer, default_template(tokenizer))
    assert sys.gettrace() is before


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


def shown(prompt, turns=QUESTION, **how):
    """A text as people read it, media in braces, targets in capitals."""
    parts = []
    for s in prompt.segments(turns, ["m"], **how):
        words = "{m}" if s.slot else prompt.tokenizer.decode(s.ids, skip_special_tokens=False)
        parts.append(words.upper() if s.target else words)
    return "".join(parts)


def test_each_choice_of_the_template_against_texts_written_by_hand():
    tokenizer = tiny.byte_level(bos=True)
    made = lambda **choices: Prompt(tokenizer, Template(delimiters=("#", "#"), **choices))  # noqa: E731
    asked = "What colour is the star?"
    assert shown(made()) == f"<s>#{{m}}#Question: {asked} Answer: BLUE</S>"
    assert shown(made(eos=False)) == f"<s>#{{m}}#Question: {asked} Answer: BLUE</s>"
    assert shown(made(media="after")) == f"<s>Question: {asked}#{{m}}# Answer: BLUE</S>"
    assert shown(made(loss_on="all")) == f"<s>#{{m}}#QUESTION: {asked.upper()} ANSWER: BLUE</S>"
    assert shown(made(question="{}\n")) == f"<s>#{{m}}#{asked}\n BLUE</S>".replace("\n ", "\n")
    assert shown(made(caption_prompt="Look!"), CAPTION) == "<s>#{m}#Question: Look! Answer: A RED CIRCLE</S>"
    with pytest.raises(AdapterError, match="before or after, and answer or all"):
        made(media="beside")


@pytest.mark.parametrize(
    "choice", [{"eos": False}, {"media": "after"}, {"loss_on": "all"}, {"row_separator": "&&", "rows": 2}]
)
@pytest.mark.parametrize("turns", [CAPTION, QUESTION, TALK])
def test_whatever_is_chosen_the_prompt_is_a_prefix(prompt, choice, turns):
    one = Prompt(prompt.tokenizer, replace(prompt.template, **choice))
    whole, asked = flat(one.segments(turns, ["m"])), flat(one.segments(turns, ["m"], answer=False))
    assert whole[: len(asked)] == asked and len(whole) > len(asked)
    assert one.stop_ids == prompt.stop_ids
    learnt = prompt.tokenizer.decode(targets(one.segments(turns, ["m"])), skip_special_tokens=False)
    assert ("colour" in learnt) == (choice.get("loss_on") == "all" and turns is not CAPTION)
    assert "&&" not in learnt and "<image>" not in learnt


def test_the_first_word_of_a_text_is_never_a_target_because_nothing_says_it():
    prompt = Prompt(tiny.byte_level(), Template(delimiters=("", "")))  # it adds no begin-of-text token
    ids = flat(prompt.segments(CAPTION, []))
    assert targets(prompt.segments(CAPTION, [])) == ids[1:] and targets(prompt.segments(CAPTION, ["m"])) == ids


def test_row_separators_give_the_601_places_of_the_published_layout():
    """### p*24 && p*24 && ... p*24 ###: 576 patches, 23 separators, 2 delimiters (gpantaz/vl_mamba)."""
    prompt = Prompt(
        tiny.byte_level(), Template(delimiters=("a", "b"), row_separator="c", rows=24)
    )  # one id each, as ### and && are in GPT-NeoX's vocabulary
    segments = prompt.segments(CAPTION, ["m"], answer=False)
    assert length_of(segments, {"m": 576}) == 601
    rows = [s.part for s in segments if s.slot]
    assert rows == [(k, 24) for k in range(24)]
    one = {name: prompt.tokenizer(name).input_ids for name in "abc"}
    kinds = ["row" if s.slot else s.ids for s in segments]
    assert kinds == [tuple(one["a"]), *(["row", tuple(one["c"])] * 23), "row", tuple(one["b"])]
    assert length_of(Prompt(tiny.byte_level(), Template()).segments(CAPTION, ["m"]), {"m": 576}) != 601


def test_the_rows_of_a_medium_are_its_vectors_in_order(language_model_folder):
    lm = load_language_model(str(language_model_folder("gpt_neox")))
    prompt = Prompt(lm.tokenizer, Template(delimiters=("", ""), row_separator="c", rows=3))
    vectors = torch.randn(6, lm.hidden_size)
    spliced = splice(lm, [prompt.segments(CAPTION, ["m"])], {"m": vectors})
    separator = lm.embed(torch.tensor(lm.tokenizer("c").input_ids))
    want = torch.cat([vectors[:2], separator, vectors[2:4], separator, vectors[4:]])
    assert torch.equal(spliced.inputs_embeds[0, :8], want)
    with pytest.raises(AdapterError, match="5 tokens of a medium can't be laid out in 3 rows"):
        splice(lm, [prompt.segments(CAPTION, ["m"])], {"m": vectors[:5]})


def test_boxes_are_words_and_are_read_back():
    assert box_text((0.123, 0.34, 0.5649, 0.78)) == "[0.12,0.34,0.56,0.78]" and box_text((0, 0, 1, 1), 0) == "[0,0,1,1]"
    for k in range(200):
        left, top, right, bottom = (k * step % 101 / 101 for step in (37, 53, 71, 13))
        box = [min(left, right), min(top, bottom), max(left, right), max(top, bottom)]
        assert all(abs(a - b) <= 0.005 + 1e-9 for a, b in zip(read_box(f"it is {box_text(box)}."), box, strict=True))
    turn = {"role": "user", "content": "What is in <box> and <box>?", "boxes": [[0, 0, 0.5, 1], [0.25, 0.5, 1, 1]]}
    assert turn_text(turn) == "What is in [0.00,0.00,0.50,1.00] and [0.25,0.50,1.00,1.00]?"
    answer = {"role": "assistant", "content": "<box>", "boxes": [[0.1, 0.2, 0.3, 0.4]]}
    prompt = Prompt(tiny.byte_level(), Template(box_decimals=1))
    text = prompt.tokenizer.decode([i for s in prompt.segments([turn, answer], ["m"]) for i in s.ids])
    assert "in [0.0,0.0,0.5,1.0] and [0.2,0.5,1.0,1.0]?" in text and "[0.1,0.2,0.3,0.4]" in text
    assert turn_text({"content": "a <box> of chocolates"}) == "a <box> of chocolates"
    with pytest.raises(AdapterError, match="2 <box> marks for 1 boxes"):
        turn_text({**turn, "boxes": [[0, 0, 1, 1]]})
    with pytest.raises(AdapterError, match="is no box"):
        box_text((12, 40, 200, 300))


LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GPT_OSS = (  # the last answer ends with another token than earlier ones
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|im_start|>assistant channel final: {{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}</s>{% else %}<|im_end|>{% endif %}"
    "{% else %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
QWEN1_5 = (  # the last answer doesn't end
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if not loop.last or add_generation_prompt %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (  # an empty block before the last answer, none before earlier ones
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
DEEPSEEK_R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}"
    "{% else %}<|im_end|>{{ m.content.split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_end|><think>\n{% endif %}"
)
EMPTY = "<think>\n\n</think>\n\n"
# What stands between the question and the answer, and after the answer; targets in capitals.
AROUND = {
    "Llama 2": (LLAMA_2, " [/INST]", " BLUE </S>"),
    "gpt-oss": (GPT_OSS, "<|im_end|><|im_start|>assistant channel final:", " BLUE</S>"),
    "Qwen1.5": (QWEN1_5, "<|im_end|>\n<|im_start|>assistant\n", "BLUE<|IM_END|>"),
    "Qwen3": (QWEN3, f"<|im_end|>\n<|im_start|>assistant\n{EMPTY}", "BLUE<|IM_END|>"),
    "DeepSeek-R1": (DEEPSEEK_R1, f"<|im_end|>{EMPTY}", "BLUE</S>"),
    **{
        opens: (DEEPSEEK_R1.replace("<think>", opens), f"<|im_end|>{opens}\n\n{closes}\n\n", "BLUE</S>")
        for opens, closes in (
            ("<thought>", "</thought>"),
            ("<seed:think>", "</seed:think>"),
            ("[THINK]", "[/THINK]"),
            ("<|START_THINKING|>", "<|END_THINKING|>"),
            ("<|begin_of_thought|>", "<|end_of_thought|>"),
        )
    },
}


@pytest.mark.parametrize("name", AROUND)
def test_what_a_chat_template_prints_before_an_answer_is_its_context(name):
    chat, between, learnt = AROUND[name]
    tokenizer = tiny.byte_level(chat=chat)
    prompt = Prompt(tokenizer, Template(style="chat", delimiters=("", "")))
    assert shown(prompt).endswith(f"What colour is the star?{between}{learnt}")
    for turns in (CAPTION, QUESTION, TALK):
        whole, asked = flat(prompt.segments(turns, ["m"])), flat(prompt.segments(turns, ["m"], answer=False))
        assert whole[: len(asked)] == asked and len(whole) > len(asked)
        words = tokenizer.decode([i for i in whole if i != "m"], skip_special_tokens=False)
        assert words.count("<think>") == words.count("</think>")
    assert shown(prompt, QUESTION, answer=False).endswith(f"What colour is the star?{between}")
    answered = tokenizer.apply_chat_template(TALK, tokenize=False)
    said = tokenizer.decode(flat(prompt.segments(TALK)), skip_special_tokens=False)
    if name in ("Llama 2", "gpt-oss", "Qwen1.5"):  # the others print no block before earlier answers
        assert said == answered + "<|im_end|>" * (name == "Qwen1.5")
    ends = ("</s>", "<|im_end|>")
    missing = name == "Qwen1.5"
    assert sum(map(said.count, ends)) == sum(map(answered.count, ends)) + missing, "each answer ends once"
    assert {tokenizer.convert_tokens_to_ids(end) for end in ends if f"blue{end}" in said} <= set(prompt.stop_ids)


def test_a_system_turn_is_text_before_the_first_question_and_is_not_asked():
    system = {"role": "system", "content": "Answer in one word."}
    prompt = Prompt(tiny.byte_level(bos=True), Template(delimiters=("#", "#")))
    asked = "Question: What colour is the star? Answer:"
    assert shown(prompt, [system, *QUESTION]) == f"<s>Answer in one word.\n#{{m}}#{asked} BLUE</S>"
    assert shown(prompt, [system, *CAPTION]) == "<s>Answer in one word.\n#{m}#A RED CIRCLE</S>"
    assert shown(prompt, [system], answer=False) == "<s>Answer in one word.\n#{m}#"
    chat = Prompt(tiny.byte_level(chat=tiny.CHATML), Template(style="chat", caption_prompt="Look!"))
    words = shown(chat, [system, *CAPTION])
    assert words.index("Answer in one word.") < words.index("{m}") < words.index("Look!")
    for turns in ([system, *QUESTION], [system, *CAPTION]):
        whole, start = flat(prompt.segments(turns, ["m"])), flat(prompt.segments(turns, ["m"], answer=False))
        assert whole[: len(start)] == start


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.INST
SYSTEM_LAST = (  # Mistral's, from 0.3: before the last question, and only when it is to be answered
    "{% set known = messages[1:] if messages[0].role == 'system' else messages %}{% for m in known %}"
    "{% if m.role == 'user' %}[INST] {% if loop.last and known != messages %}{{ messages[0].content }}\n\n{% endif %}"
    "{{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("chat", [NO_SYSTEM, SYSTEM_LAST, SYSTEM_LAST.replace("loop.last", "m == known[-2:][0]")])
def test_a_system_turn_that_a_chat_template_has_no_place_for_begins_the_first_question(chat):
    prompt = Prompt(tiny.byte_level(chat=chat), Template(style="chat", delimiters=("#", "#")))
    system = {"role": "system", "content": "Be brief."}
    for turns in (QUESTION, TALK):
        alone, whole = shown(prompt, turns), shown(prompt, [system, *turns])
        assert whole == alone.replace("[INST] #", "[INST] Be brief.\n\n#", 1) != alone
        asked = shown(prompt, [system, *turns[:-1]], answer=False)
        assert whole.startswith(asked) and "Be brief." in asked


def test_the_date_that_a_template_prints_stays_that_of_the_run():
    chat = "Today is {{ strftime_now('%d %b %Y') }}. " + tiny.CHATML
    tokenizer = tiny.byte_level(chat=chat)
    template = replace(default_template(tokenizer), date="2025-02-03")
    assert default_template(tokenizer).date == date.today().isoformat()
    assert shown(Prompt(tokenizer, template)).startswith("Today is 03 Feb 2025. ")
    assert Template.from_dict(template.to_dict()) == template
    timeless = default_template(tiny.byte_level(chat=tiny.CHATML))
    assert timeless.date == "" and "date" not in timeless.to_dict()
    assert shown(Prompt(tokenizer, replace(template, date=""))).startswith(f"Today is {date.today():%d %b %Y}. ")
    tokenizer.chat_template = {"default": "{{ strftime_now('%-d.%-m.%y %F %H:%M%%') }} " + tiny.CHATML, "tools": "no"}
    assert shown(Prompt(tokenizer, template)).startswith("3.2.25 2025-02-03 00:00% ")
    with pytest.raises(AdapterError, match="the template's date is '2025-02-30'; it must be a day"):
        Prompt(tokenizer, replace(template, date="2025-02-30"))


def test_a_caption_prompt_names_what_is_described():
    chat = tiny.byte_level(chat=tiny.CHATML)
    asked = {modality: default_template(chat, modality=modality).caption_prompt for modality in ("audio", "video")}
    assert asked == {"audio": "Describe the sound.", "video": "Describe the video."}
    assert default_template(chat).caption_prompt == "Describe the image."
    assert default_template(chat, modality="audio", caption_prompt="Listen!").caption_prompt == "Listen!"
    assert default_template(tiny.byte_level(), modality="audio").caption_prompt == ""


def test_delimiters_name_what_they_stand_around():
    tokenizer = tiny.byte_level()
    assert default_template(tokenizer).delimiters == ("<image>", "</image>")
    assert default_template(tokenizer, modality="audio").delimiters == ("<audio>", "</audio>")
    assert default_template(tokenizer, delimiters=("", "\n"), modality="audio").delimiters == ("", "\n")


def test_media_marked_at_the_edges_of_a_question_stand_where_the_template_has_them():
    """LLaVA's data have `<image>` before or after a question by chance; its code moves it to the front."""

    def made(**choices):
        return Prompt(tiny.byte_level(), Template(**{"delimiters": ("", ""), "question": "Q:{}A:", **choices}))

    for words in ("<image>\nIs it blue?", "Is it blue?\n<image>", "Is it blue? <image>", "<image> Is it blue?"):
        asked = [{"role": "user", "content": words}]
        assert shown(made(), asked, answer=False) == "{m}Q:Is it blue?A:", words
        assert shown(made(media="after"), asked, answer=False) == "Q:Is it blue?{m}A:", words
        assert shown(made(question="Q:<image>\n{}A:"), asked, answer=False) == "Q:{m}\nIs it blue?A:"
        kept = shown(made(media="after", marks="all"), asked, answer=False)
        assert kept == ("{m}Q:Is it blue?A:" if words[0] == "<" else "Q:Is it blue?{m}A:"), words
    inside = [{"role": "user", "content": "Is <image> blue?"}]
    for choices in ({}, {"media": "after"}, {"question": "Q:<image>\n{}A:"}):
        assert "Is{m}blue?A:" in shown(made(**choices), inside, answer=False)
    two = [{"role": "user", "content": "<image>\n<image>\nWhich is blue?"}]
    ids = flat(made(media="after").segments(two, ["one", "two"], answer=False))
    assert [each for each in ids if isinstance(each, str)] == ["one", "two"] and ids.index("one") > 5
    (without,) = made(question="Q:<image>\n{}A:").segments([{"role": "user", "content": "Why?"}], [], answer=False)
    assert made().tokenizer.decode(without.ids) == "Q:Why?A:"


def test_a_request_for_a_caption_has_a_form_of_its_own():
    template = Template(delimiters=("", ""), caption_prompt="Look!", caption_form="{}\n", preamble="Hi. ")
    prompt = Prompt(tiny.byte_level(), template)
    assert shown(prompt, CAPTION) == "Hi.{m}Look!\nA RED CIRCLE</S>".replace("Hi.", "Hi. ")
    asked = [{"role": "request", "content": "Tell me."}, *CAPTION]
    assert shown(prompt, asked) == "Hi. {m}Tell me.\nA RED CIRCLE</S>"
    assert "Question: What colour" in shown(prompt, QUESTION)
    chat = tiny.byte_level(chat=tiny.CHATML, eos="<|im_end|>")
    assert "<|im_start|>user\n" in shown(Prompt(chat, default_template(chat)), asked)
    with pytest.raises(AdapterError, match="caption_form is 'no slot'; it needs one"):
        Prompt(tiny.byte_level(), replace(template, caption_form="no slot"))
    with pytest.raises(AdapterError, match="requests is 'burn'; it must be drop or keep or question"):
        Prompt(tiny.byte_level(), replace(template, requests="burn"))


def test_sentencepiece_marks_the_first_word_of_a_string_and_earlier_adapters_keep_their_ids():
    tokenizer = tiny.sentencepiece_like()
    old = {"delimiters": ["", ""], "style": "plain", "caption_prompt": "", "question": "USER: {} ASSISTANT: "}
    earlier = Template.from_dict(migrate({"template": old})["template"])
    for template, first in ((Template(delimiters=("", "")), "▁"), (earlier, "a")):
        said = targets(Prompt(tokenizer, template).segments(CAPTION, ["m"]))
        assert tokenizer.convert_ids_to_tokens(said)[0].startswith(first)
    ids = flat(Prompt(tokenizer, earlier).segments(TALK, ["m"]))
    assert tokenizer.convert_ids_to_tokens(ids[2:4]) != tokenizer.tokenize("USER:")[:2]
    marked = [{"role": "user", "content": "the star\n<image>"}]
    assert flat(Prompt(tokenizer, earlier).segments(marked, ["m"], answer=False)).index("m") > 3
    assert (earlier.requests, earlier.captions_read) == ("question", "")


def test_another_tasks_wording_is_asked():
    from types import SimpleNamespace

    from periscope.evaluation.predict import AskedTask, task_prompt

    prompt = Prompt(tiny.byte_level(), Template(delimiters=("", "")))
    model = SimpleNamespace(prompt=prompt)
    asked = task_prompt(model, AskedTask(system="cobra", prompt="{question}\nAnswer in a word."))
    assert shown(asked, QUESTION[:1], answer=False) == "{m}What colour is the star?\nAnswer in a word."
    caption = task_prompt(model, AskedTask(system="mamba-vl", prompt="Give a caption.\n"))
    assert shown(caption, [], answer=False) == "{m}Give a caption.\n"
    assert task_prompt(model, AskedTask()) is prompt
