"""Losses, weights and features that aren't finite: what is kept, and what the error names."""

import json
import math

import pytest
import torch
from encoded_photos import contents
from script_runs import here

from periscope.errors import RunError
from periscope.shards.read import FeatureSet
from periscope.training import step as training_step
from periscope.training.config import config_from
from periscope.training.run import Run

TRAIN = (
    *("train.py", "--features", "features/photos", "--lm", "lm", "--adapter", "mlp3", "--batch", "16"),
    *("--save-every", "1", "--eval-every", "1"),
)


@pytest.fixture
def train(home, monkeypatch, capsys):
    return lambda *arguments: here(home, monkeypatch, capsys, *TRAIN, *arguments)


def kept(run):
    return sorted(int(path.name) for path in (run / "steps").iterdir())


def test_a_streak_of_bad_losses_leaves_the_good_checkpoints(home, train, monkeypatch, capsys):
    taken, one = [], training_step.take_step

    def worsens(*given):
        taken.append(1)
        return one(*given) if len(taken) <= 6 else (math.nan, math.nan, given[4])

    monkeypatch.setattr(training_step, "take_step", worsens)
    with pytest.raises(RunError, match=r"the loss was nan 5 times; try --precision .* --resume runs/streak --lr"):
        train("--steps", "12", "--name", "streak")
    run = home / "runs" / "streak"
    best = int((run / "best").read_text())
    assert int((run / "last").read_text()) == 6 and set(kept(run)) == {4, 5, 6, best}
    assert Run(run).evaluations(99)[-1]["step"] == 6

    monkeypatch.setattr(training_step, "take_step", one)
    before = contents(run)
    with pytest.raises(RunError, match=r"started with lr 0.001, not 0.002; resume it without --lr or with a lower one"):
        here(home, monkeypatch, capsys, "train.py", "--resume", "runs/streak", "--lr", "0.002")
    said = here(home, monkeypatch, capsys, "train.py", "--resume", "runs/streak", "--lr", "0.0005")
    lower = home / "runs" / "streak-lr0.0005"
    assert "runs/streak-lr0.0005 goes on from step 6 of runs/streak" in said and contents(run) == before
    assert Run(lower).finished() and Run(lower).config.lr == 0.0005
    origin = json.loads((lower / "environment.json").read_text())["branch_of"]
    assert origin == {"run": "runs/streak", "step": 6, "lr": 0.001}
    rows = {row["step"]: row["lr"] for row in Run(lower).metrics() if "lr" in row}
    assert list(rows) == list(range(1, 13)) and max(rows[step] for step in range(7, 13)) <= 0.0005 < rows[6]
    with pytest.raises(RunError, match="never overwritten"):
        here(home, monkeypatch, capsys, "train.py", "--resume", "runs/streak", "--lr", "0.0005")


def spoil(monkeypatch, chosen):
    """Make the features of one medium NaN."""
    read = FeatureSet.read_many

    def spoiled(self, keys, kind, **options):
        rows = read(self, keys, kind, **options).clone()
        for i, key in enumerate(keys):
            if self.info(key)["origin"] == chosen:
                rows[i, 0] = math.nan
        return rows

    monkeypatch.setattr(FeatureSet, "read_many", spoiled)


def origins(home, split):
    features = FeatureSet(home / "features" / "photos")
    return [features.info(text.media[0])["origin"] for text in features.texts(None).of_split(split)]


def test_the_error_names_the_medium_whose_features_are_not_finite(home, train, monkeypatch, capsys):
    bad = origins(home, "train")[7]
    spoil(monkeypatch, bad)
    with pytest.raises(RunError, match=rf"nan 5 times; the features of {bad} aren't finite: leave these media out"):
        train("--steps", "40", "--name", "medium")
    assert f"the features of {bad} aren't finite" in capsys.readouterr().out


def test_one_bad_heldout_text_does_not_silence_best(home, train, monkeypatch):
    spoil(monkeypatch, origins(home, "heldout")[3])
    said = train("--steps", "3", "--name", "spoilt")
    run = home / "runs" / "spoilt"
    rows = Run(run).evaluations(99)
    assert [row["not_finite"] for row in rows] == [1, 1, 1] and all(
        math.isfinite(row["heldout"]["real"]) for row in rows
    )
    losses = {row["step"]: row["heldout"]["real"] for row in rows}
    assert int((run / "best").read_text()) == min(losses, key=losses.get) and "1 texts left out" in said


def test_weights_that_are_not_finite_are_never_saved(home, train, monkeypatch):
    clip, clipped = torch.nn.utils.clip_grad_norm_, []

    def spoiled(parameters, *rest):
        clipped.append(1)
        if len(clipped) == 5:
            for parameter in parameters:
                parameter.grad.fill_(math.nan)
        return clip(parameters, *rest)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoiled)
    with pytest.raises(RunError, match=r"the weights of \S+ aren't finite after step 5"):
        train("--steps", "20", "--name", "weights")
    assert int((home / "runs" / "weights" / "last").read_text()) == 4


@pytest.mark.parametrize("name", ["lr", "min_lr", "lora_lr", "soft_prompt_lr"])
@pytest.mark.parametrize("value", [math.inf, 1e38, math.nan, 10.5, -1.0])
def test_a_learning_rate_has_a_range(name, value):
    with pytest.raises(RunError, match=rf"--{name.replace('_', '-')} is .*; it must be at (most 10|least 0)"):
        config_from({name: value}, "the test")
    assert config_from({name: 10.0}, "the test")


@pytest.mark.parametrize("name", ["grad_clip", "weight_decay", "token_noise", "warmup", "epochs"])
def test_other_numbers_are_finite(name):
    with pytest.raises(RunError, match=r"must be at most 1000000000\.0"):
        config_from({name: math.inf}, "the test")
