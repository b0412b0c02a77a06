"""Before training, three texts are shown exactly as they are trained on."""

import pytest
from script_runs import here
from tiny import adapted

from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import Segment
from periscope.adapters.prompting.shown import shown
from periscope.adapters.prompting.template import Template
from periscope.shards.read import FeatureSet

TRAIN = ("--features", "features/photos", "--lm", "lm", "--adapter", "mlp3", "--batch", "16", "--epochs", "1")


def test_train_prints_three_samples_before_it_starts(home, monkeypatch, capsys):
    said = here(home, monkeypatch, capsys, "train.py", *TRAIN, "--name", "samples")
    samples = [part.split("\n") for part in said.split("sample ")[1:]]
    assert len(samples) == 3 and said.index("sample ") < said.index("run: runs/samples")
    features = FeatureSet(home / "features/photos")
    texts = {features.info(text.media[0])["origin"]: text.turns[-1]["content"] for text in features.texts()}
    for label, prompt, target, *_ in samples:
        origin = label.rpartition(": ")[2]
        assert prompt.startswith("  prompt: ") and f"<image>[{origin}: 3 tokens]</image>" in prompt
        assert target == f"  target: {texts[origin]}</s>"


def test_what_is_shown_is_what_the_ids_say(home):
    """The texts of prompts and targets, joined, are the whole text with its special tokens."""
    model = adapted(home / "lm")
    tokenizer = model.prompt.tokenizer
    turns = [{"role": "user", "content": "who is it"}, {"role": "assistant", "content": "a dog"}]
    turns += [{"role": "user", "content": "and this"}, {"role": "assistant", "content": "a cat"}]
    segments = Prompt(tokenizer, Template()).segments(turns, ["m"])
    parts = list(shown(segments, tokenizer.decode, lambda segment: segment.slot or ""))
    assert [role for role, _ in parts] == ["prompt", "target"] * 2
    ids = [number for segment in segments if not segment.slot for number in segment.ids]
    joined = "".join(words for _, words in parts).replace("[m]", "")
    assert joined.split() == tokenizer.decode(ids).replace("> </image>", "></image>").split()


@pytest.mark.parametrize("target", [True, False])
def test_spaces_of_words_are_kept(target):
    def decode(ids):
        return " ".join(f"w{number}" for number in ids)

    parts = list(shown([Segment((1, 2)), Segment((3,), target=target)], decode, str))
    assert parts == ([("prompt", "w1 w2"), ("target", " w3")] if target else [("prompt", "w1 w2 w3")])
