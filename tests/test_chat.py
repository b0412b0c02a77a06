"""Conversations in Python: what is remembered, answers in pieces, and what is refused."""

from types import SimpleNamespace

import pytest
import tiny
import torch

from periscope.adapters.composed import ComposedModel
from periscope.errors import AdapterError, PrecomputeError
from periscope.inference import LoadedModel


def reader(broken: str = ""):
    """Features that depend on the medium's name."""

    def features(medium):
        if medium == broken:
            raise PrecomputeError(f"{medium}: can't be opened")
        return torch.randn(12, generator=torch.Generator().manual_seed(sum(map(ord, str(medium)))))

    return SimpleNamespace(features=features)


@pytest.fixture
def loaded(language_model_folder):
    model = tiny.adapted(language_model_folder("smollm"), soft_prompt=2)
    return LoadedModel(ComposedModel({"image": model}), {"image": reader("broken.png")})


@pytest.fixture
def prompts(loaded, monkeypatch):
    """The prompts that are answered, as turns' words and slots, in place of the model's answers."""
    seen = []

    def generate(texts, features, max_new_tokens, **decoding):
        words = [s.slot or loaded.model.lm.tokenizer.decode(s.ids) for s in texts[0]]
        seen.append(("".join(words), {slot: value.sum().item() for slot, value in features.items()}, decoding))
        return [f"answer {len(seen)}"]

    monkeypatch.setattr(loaded.model, "generate", generate)
    return seen


def test_what_was_said_and_shown_is_read_again(loaded, prompts):
    chat = loaded.chat("cat.png", temperature=0.7, top_p=0.9)
    assert chat.send("What is it?") == "answer 1" and chat.send("And its colour?") == "answer 2"
    chat.send("Is this like it?", image="dog.png")
    (first, _, how), (second, _, _), (third, shown, _) = prompts
    assert first.count("image:image:") == 0 and first.count("image:0") == 1
    assert "What is it?" in second and "answer 1" in second and second.index("image:0") < second.index("answer 1")
    assert second.startswith(first) and third.startswith(second) and third.index("answer 2") < third.index("image:1")
    assert list(shown) == ["image:0", "image:1"] and len(set(shown.values())) == 2
    assert how == {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}
    assert chat.history == [
        {"role": "user", "content": "What is it?", "media": ["cat.png"]},
        {"role": "assistant", "content": "answer 1"},
        {"role": "user", "content": "And its colour?"},
        {"role": "assistant", "content": "answer 2"},
        {"role": "user", "content": "Is this like it?", "media": ["dog.png"]},
        {"role": "assistant", "content": "answer 3"},
    ]
    assert repr(chat) == "ChatSession(6 messages, 2 media; drawn at temperature 0.7, top-p 0.9)"
    chat.clear()
    assert chat.history == []
    chat.send("What is it?")
    assert prompts[-1][0] == first, "about the same picture, from the beginning"


def test_a_first_message_asks_what_ask_asks(loaded, prompts):
    loaded.ask("cat.png", "What is it?")
    loaded.caption("cat.png")
    loaded.chat("cat.png").send("What is it?")
    loaded.chat().send("What is it?", "cat.png")
    loaded.chat("cat.png").send()
    asked, captioned, *chats = [prompt for prompt, _, _ in prompts]
    assert chats == [asked, asked, captioned]
    loaded.chat(system="Be brief.").send("Hello")
    assert "Be brief." in prompts[-1][0] and "image:0" not in prompts[-1][0]


def test_a_message_that_fails_is_not_remembered(loaded, prompts):
    chat = loaded.chat("cat.png")
    for message, error, words in (
        ({"text": "<image> or <image>?"}, AdapterError, "2 marks"),
        ({"text": "this?", "image": "broken.png"}, PrecomputeError, "broken.png: can't be opened"),
        ({"text": "this?", "audio": "purr.wav"}, AdapterError, "'audio' is no modality of this model"),
        ({"text": "this?", "media": "a.png", "image": "b.png"}, AdapterError, "once: as media, or as image="),
        ({"text": torch.zeros(3)}, AdapterError, r"its words come first: send\(text, media\)"),
    ):
        with pytest.raises(error, match=words):
            chat.send(**message)
    assert chat.history == [] and not prompts
    chat.send("What is it?")
    assert prompts[0][0].count("image:0") == 1


def test_a_stream_is_the_answer_and_is_remembered_as_far_as_it_went(loaded):
    whole = loaded.chat("cat.png", max_new_tokens=24).send("What?")
    assert len(whole) > 4
    chat = loaded.chat("cat.png", max_new_tokens=24)
    pieces = list(chat.send("What?", stream=True))
    assert "".join(pieces) == whole and len(pieces) > 1 and chat.history[-1]["content"] == whole
    assert "".join(loaded.ask("cat.png", "What?", 24, stream=True)) == whole
    assert "".join(loaded.caption("cat.png", 24, stream=True)) == loaded.caption("cat.png", 24)

    chat.clear()
    stream = chat.send("What?", stream=True)
    first = next(stream)
    assert chat.history == []
    stream.close()
    assert [turn["content"] for turn in chat.history] == ["What?", first.rstrip()] and whole.startswith(first)

    chat.clear()
    unread, begun = chat.send("Nothing?", stream=True), chat.send("What?", stream=True)
    piece = next(begun)
    after = chat.send("And?")
    assert [turn["content"] for turn in chat.history] == ["What?", piece.rstrip(), "And?", after]
    assert not list(unread) and not list(begun)


def test_a_call_waits_for_a_stream_that_nobody_reads(loaded):
    """One language model, one answer at a time: an adapter that injects would mix them up."""
    alone = loaded.ask("dog.png", "What?", 8)
    stream = loaded.ask("cat.png", "What?", 24, stream=True)
    first = next(stream)
    assert loaded.ask("dog.png", "What?", 8) == alone
    assert first + "".join(stream) == loaded.ask("cat.png", "What?", 24)


def test_beams_cannot_stream_and_search_in_a_chat(loaded):
    chat = loaded.chat("cat.png", max_new_tokens=6, beams=3)
    with pytest.raises(AdapterError, match="stream with beams 1"):
        chat.send("What?", stream=True)
    assert chat.send("What?") == loaded.ask("cat.png", "What?", 6, beams=3) and len(chat.history) == 2


def test_a_conversation_longer_than_the_model_reads_is_refused(loaded, monkeypatch):
    chat = loaded.chat("cat.png", max_new_tokens=8)
    chat.send("What?")
    length = loaded.model.length
    seen = []
    monkeypatch.setattr(loaded.model, "length", lambda text: seen.append(length(text)) or seen[-1])
    chat.send("the fox " * 20)
    with pytest.raises(AdapterError, match=r"leaves no room for an answer, because .* reads at most 256"):
        chat.send("the lazy dog " * 40)
    assert 0 < seen[0] < 256 <= seen[1] and len(chat.history) == 4
    text = loaded.prompt.segments([{"role": "user", "content": "What?"}], ["image:0"], answer=False)
    batch, _ = loaded.model._splice([text], loaded.model.slots([text], {"image:0": torch.zeros(12)}), train=False)
    assert length(text) == batch.inputs_embeds.shape[1]
