"""`periscope init`: what it proposes for a folder and a machine, each command as it can be run."""

import io
import shlex
import sys
import wave
from pathlib import Path

import pytest
from PIL import Image

from periscope import cli, hub_repo, propose
from periscope.forecast import Card
from periscope.precompute.config import read_config
from periscope.training.config import parse_request


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    """Run `periscope init` in a folder with pictures; what was printed. keys: what is typed at a terminal."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (8, 8), "red").save(f"photos/{name}.png")
        Path(f"photos/{name}.txt").write_text(f"letter {name}\n")
    monkeypatch.setattr(propose, "choose_device", lambda: "cpu")
    monkeypatch.setattr(hub_repo, "hub_reachable", lambda: True)

    def call(*arguments: str, keys: str | None = None) -> str:
        typed = io.StringIO(keys or "")
        typed.isatty = lambda: keys is not None
        monkeypatch.setattr(sys, "stdin", typed)
        monkeypatch.setattr(sys, "argv", ["periscope", "init", *arguments])
        cli.main()
        return capsys.readouterr().out

    return call


def proposed(out: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("periscope ")]


def sound(path: str) -> None:
    with wave.open(path, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(32000))


def test_three_commands_that_their_programs_read(init):
    out = init("photos")
    encode, train, answer = proposed(out)
    assert "photos: 2 images, 2 texts about them" in out and "without a GPU" in out
    assert (encode[0], train[0], answer[0]) == ("precompute", "train", "eval")
    config = read_config(encode[1:])
    assert config.encoder == "clip-b-32" and config.data == Path("photos") and config.out is None
    request = parse_request(train[1:])
    assert request.name == "photos" and request.flags["features"] == "features/photos"
    assert request.flags["lm"] == propose.ON_A_CPU and request.flags["adapter"] == "mlp16"
    assert answer[1:5] == ["--run", "runs/photos", "--image", "photos/a.png"]


def test_without_a_network_it_also_proposes_a_miniature(init, monkeypatch):
    monkeypatch.setattr(hub_repo, "hub_reachable", lambda: False)
    out = init("photos")
    *_, encode, train, answer = proposed(out)
    assert "the Hub can't be reached from here" in out and len(proposed(out)) == 6
    assert read_config(encode[1:]).tiny and parse_request(train[1:]).tiny and encode[-1] == "--tiny"
    assert "features/photos-tiny" in train and answer[1:3] == ["--run", "runs/photos-tiny"]


def test_nothing_that_is_there_is_used_again(init, monkeypatch):
    Path("runs/photos").mkdir(parents=True)
    Path("runs/photos-2").mkdir()
    Path("features/photos").mkdir(parents=True)
    Path("features/photos/manifest.json").write_text("{}")
    monkeypatch.setattr(propose, "load_manifest", lambda folder: {"encoder": {"name": "ast"}})
    encode, train, answer = proposed(init("photos"))
    assert encode[-2:] == ["--out", "features/photos-clip-b-32"] and "features/photos-clip-b-32" in train
    assert train[-1] == "photos-3" and "runs/photos-3" in answer


def test_two_questions_at_a_terminal_and_none_with_yes(init):
    for name in ("x", "y", "z"):
        sound(f"photos/{name}.wav")
        Path(f"photos/{name}.txt").write_text(f"silence {name}\n")
    out = init("photos", "--yes", keys="never read\n")
    assert "photos: 3 sounds, 3 texts" in out and "ast" in proposed(out)[0] and "there are" not in out
    out = init("photos", keys="image\nmy/model\n")
    assert "language model: my/model, as you asked" in out
    assert "my/model" in proposed(out)[1] and "--image" in proposed(out)[2]
    with pytest.raises(SystemExit, match="'pictures' is none of"):
        init("photos", keys="pictures\n")


@pytest.mark.parametrize(
    ("memory", "encoder", "lm"),
    [
        (4, "siglip2-b", "HuggingFaceTB/SmolLM2-360M-Instruct"),
        (12, "siglip2-so400m-384", "Qwen/Qwen2.5-1.5B-Instruct"),
        (24, "siglip2-so400m-384", "Qwen/Qwen3-4B-Instruct-2507"),
    ],
)
def test_a_larger_card_gets_larger_models(init, monkeypatch, memory, encoder, lm):
    monkeypatch.setattr(propose, "this_card", lambda: Card("Some Card", memory, 1e12))
    out = init("photos")
    assert encoder in proposed(out)[0] and lm in proposed(out)[1] and f"Some Card, {memory} GB" in out, out


def test_a_table_whose_rows_match_no_file_is_said(init, capsys):
    Path("named").mkdir()
    Image.new("RGB", (8, 8)).save("named/a.png")
    Path("named/captions.csv").write_text("file_name,caption\nnamed/a.png,A square.\n")
    with pytest.raises(SystemExit):
        init("named")
    assert "rejected: 1 missing file, e.g. named/a.png (captions.csv, line 2)" in capsys.readouterr().out


def test_mistakes_get_a_sentence(init):
    Path("empty").mkdir()
    Path("bare").mkdir()
    Image.new("RGB", (8, 8)).save("bare/a.png")
    for folder, why in (("nope", "there is no such folder"), ("empty", "no media in"), ("bare", "no medium has words")):
        with pytest.raises(SystemExit) as end:
            init(folder)
        assert str(end.value.code).startswith("error: ") and why in str(end.value.code)
