"""Nothing from data steers the terminal."""

import io
import sys
from types import SimpleNamespace

import pytest

from periscope.adapters.generation.decoding import Decoding
from periscope.console import run
from periscope.errors import AdapterError, PrecomputeError
from periscope.evaluation.chat import chat
from periscope.text import printable

EVIL = "a cat\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e\udcff"
HARMLESS = "a cat\\x1b[2J\\x1b]0;owned\\x07\\x0d\\x9b31m\\u202e\\udcff"


def test_controls_are_spelled_out_and_words_are_left_alone():
    assert printable(EVIL) == HARMLESS
    for words in ("naïve café\tÅ\n日本語 🙂👩‍👩‍👧 नमस्ते שלום", "", "C:\\x1b"):
        assert printable(words) == words
    everything = printable("".join(map(chr, range(sys.maxunicode + 1))))
    everything.encode()
    assert not {chr(code) for code in (*range(32), *range(127, 160))} - {"\t", "\n"} & set(everything)


def test_an_error_that_names_a_file_prints_no_escapes():
    def main():
        raise AdapterError(f"{EVIL} can't be read")

    with pytest.raises(SystemExit, match=r"error: a cat\\x1b\[2J"):
        run(main)


def test_answers_and_file_names_in_a_chat_print_no_escapes(monkeypatch, capsys):
    def send(line, media, stream):
        if line == "fail":
            raise AdapterError(EVIL)
        return iter([EVIL])

    def features(file, modality):
        raise PrecomputeError(f"{file} isn't there")

    talk = SimpleNamespace(send=send)
    loaded = SimpleNamespace(
        readers={"image": None}, chat=lambda media, **how: talk, features=features, captions_only={}
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("what?\nfail\n/image 'missing\x1b[2J.png'\n/quit\n"))
    chat(loaded, {"image": [EVIL]}, Decoding())
    out, err = capsys.readouterr()
    assert out.count(HARMLESS) == 2 and HARMLESS in err and "missing\\x1b[2J.png isn't there" in err
    assert "\x1b" not in out + err and "\r" not in out + err


def test_what_inspect_and_the_listing_of_loss_drops_show_of_a_set_prints_no_escapes(monkeypatch, capsys, tmp_path):
    from PIL import Image

    from periscope.evaluation import commands
    from periscope.precompute import __main__ as tools

    monkeypatch.setattr("periscope.shards.verify.inspect", lambda folder: f"captions:\n  {EVIL}")
    monkeypatch.setattr(tools, "_check", lambda folder: None)
    monkeypatch.setattr("periscope.shards.read.FeatureSet", lambda folder: None)
    monkeypatch.setattr("periscope.precompute.contact_sheet.contact_sheet", lambda features: Image.new("RGB", (2, 2)))
    tools.inspect(tmp_path / "set")
    assert f"captions:\n  {HARMLESS}\n" in capsys.readouterr().out

    run = SimpleNamespace(of_split=lambda split: [], model=None, features=None, path=tmp_path)
    monkeypatch.setattr(commands, "open_scored", lambda *arguments: run)
    monkeypatch.setattr(commands.loss_drop, "rank_texts", lambda *arguments: [SimpleNamespace(drop=-1.0)])
    monkeypatch.setattr(commands.loss_drop, "one_line", lambda each, features: EVIL)
    monkeypatch.setattr(commands.captioning, "write_lines", lambda lines, path: 1)
    options = SimpleNamespace(loss_drop="train", write=None, drop=0)
    config = SimpleNamespace(
        texts=options, scoring=SimpleNamespace(limit=0), models=None, answers=SimpleNamespace(batch=1)
    )
    commands.rank_texts(tmp_path, None, config, "cpu")
    out = capsys.readouterr().out
    assert f"-1.00  {HARMLESS}\n" in out and "\x1b" not in out
