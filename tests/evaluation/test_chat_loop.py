"""The chat at the keyboard: its commands, its memory, and Ctrl-C."""

import io
import os
import signal

import pytest
import tiny
from PIL import Image

import periscope
from periscope.adapters.generation.decoding import Decoding
from periscope.evaluation import chat as chat_module
from periscope.evaluation.chat import chat


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("talk")
    tiny.save_tiny_adapter(home / "whole", home, {"features": "photos"}, soft_prompt=2)
    for name, colour in (("cat.png", "blue"), ("dog.png", "red"), ("a b.png", "green")):
        Image.new("RGB", (40, 30), colour).save(home / name)
    return home


@pytest.fixture
def loaded(home, monkeypatch):
    monkeypatch.chdir(home)
    return periscope.load("whole", device="cpu")


@pytest.fixture
def talk(loaded, monkeypatch, capsys):
    """Talk about files with lines from the keyboard; what was printed, to stdout and stderr."""

    def say(media, *lines, **how):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        chat(loaded, media, Decoding(**{"max_new_tokens": 8} | how))
        return capsys.readouterr()

    return say


def test_it_remembers_until_it_is_cleared(talk, loaded):
    session = loaded.chat("cat.png", max_new_tokens=8)
    first, second = session.send("the fox?"), session.send("and the dog?")
    said = talk({"image": ["cat.png"]}, "the fox?", "", "and the dog?", "/clear", "the fox?", "/quit", "never").out
    answers = [line.lstrip("> ") for line in said.splitlines()[1:]]
    assert answers[:4] == [first, loaded.caption("cat.png", 8), second, first]
    assert "about cat.png; an empty line captions" in said and first != second


def test_other_files_begin_anew_and_added_ones_go_on(talk, loaded):
    session = loaded.chat("cat.png", max_new_tokens=8)
    first = session.send("the fox?")
    added = session.send("and <image> and <image>?", ["dog.png", "a b.png"])
    other = loaded.ask("dog.png", "the fox?", 8)
    out, err = talk(
        {"image": ["cat.png"]}, "the fox?", "/add no.png", "/add dog.png 'a b.png'", "and <image> and <image>?",
        "/image no.png", "/image dog.png", "the fox?", "/image a b.png", "/nonsense", "/add 'open",
    )  # fmt: skip
    answers = [line.lstrip("> ") for line in out.splitlines()[1:]]
    assert answers[:4] == [first, "the next message also shows dog.png a b.png", added, other]
    assert "no.png" in err and "still about cat.png" in err and "/nonsense is no command; /help lists them" in err
    assert "'open: No closing quotation" in err


def test_words_alone_and_help(talk, loaded):
    out, err = talk({}, "", "/help", "the fox?")
    assert "about nothing;" in out and "nothing to caption" in err
    for command in ("/image FILE", "/add FILE", "/clear", "/help", "/quit"):
        assert command in out
    assert loaded.ask([], "the fox?", 8) == out.splitlines()[-2].lstrip("> ") != ""


@pytest.mark.parametrize("how", [{"beams": 3}, {"temperature": 1.5, "top_p": 0.9}])
def test_decoding_is_as_asked(talk, loaded, how, monkeypatch):
    seen = []
    for name in ("generate", "stream"):
        method = getattr(loaded.model, name)
        monkeypatch.setattr(loaded.model, name, lambda *a, _m=method, **k: (seen.append(k), _m(*a, **k))[1])
    talk({"image": ["cat.png"]}, "the fox?", "", **how)
    assert seen == [Decoding(**how).arguments()] * 2


def test_ctrl_c_stops_an_answer_and_not_the_chat(talk, loaded, monkeypatch):
    """Pressed while the second piece of an answer is awaited, while a line is, and while a picture is read."""
    printable, pressed = chat_module.printable, []

    def presses(words):
        if words == first and not pressed:
            pressed.append(words)
            os.kill(os.getpid(), signal.SIGINT)
        return printable(words)

    session = loaded.chat("cat.png", max_new_tokens=200)
    stream = session.send("the fox?", stream=True)
    first = next(stream)
    stream.close()
    after = session.send("and the dog?")
    monkeypatch.setattr(chat_module, "printable", presses)
    out, err = talk({"image": ["cat.png"]}, "the fox?", "and the dog?", max_new_tokens=200)
    assert pressed == [first] and after in out, "what was said before Ctrl-C is remembered"
    assert err.count("/quit or Ctrl-D ends the chat") == 1

    lines, keys = iter([KeyboardInterrupt, "/image dog.png", "the fox?", EOFError]), [1]

    def typed(prompt):
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    def features(*given):
        if keys:
            keys.clear()
            raise KeyboardInterrupt
        return type(loaded).features(loaded, *given)

    monkeypatch.setattr("builtins.input", typed)
    media = {"image": ["cat.png"]}
    loaded.features(media["image"][0])
    begun = chat_module.Talk(loaded, media, Decoding(8))
    monkeypatch.setattr(chat_module, "Talk", lambda *given: begun)
    monkeypatch.setattr(loaded, "features", features)
    out, err = talk(media)
    assert err.count("/quit or Ctrl-D ends the chat") == 2 and not keys
    assert loaded.ask("cat.png", "the fox?", 8) in out, "still about the first picture"
