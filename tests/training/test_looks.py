"""Evaluations on held-out texts while training: how many texts they take, and what they needn't compute again."""

import json
import math

import pytest
from script_runs import here

from periscope.training import heldout
from periscope.training.config import TrainConfig, config_from
from periscope.training.heldout import LookSize, look_size, texts_that_pay
from periscope.training.resolve import settle_schedule


@pytest.mark.parametrize(
    ("texts", "passes", "between", "size"),
    [
        (256, 2, 160 * 32, LookSize(233, 32)),  # the demo's
        (256, 2, 500 * 32, LookSize(256, 32)),
        (64, 2, 174 * 8, LookSize(52, 24)),
        (64, 2, 1, LookSize(48, 8)),  # the fewest
        (5, 2, 1, LookSize(5, 5)),
    ],
)
def test_an_evaluation_takes_what_5_percent_of_the_training_pay_for(texts, passes, between, size):
    assert look_size(texts, passes, between) == size
    cost = passes * size.texts + heldout.ANSWER_COST * size.answers
    assert cost <= 0.05 * heldout.TRAINING_COST * between or size.texts in (48, texts)


def test_short_trainings_are_evaluated_less_often_rather_than_on_a_few_texts():
    every = math.ceil(texts_that_pay(64, 2) / 8)
    assert every == 134 and look_size(64, 2, every * 8).texts == 48
    assert [settle_schedule(TrainConfig(steps=n), 100, every).eval_every for n in (500, 1000, 2000)] == [125, 134, 250]
    assert settle_schedule(TrainConfig(steps=4), 100, every).eval_every == 50
    assert settle_schedule(config_from({"steps": 500, "eval_every": 10}, "the test"), 100, every).eval_every == 10


@pytest.mark.parametrize("soft_prompt", [0, 2])
def test_the_loss_without_media_is_computed_again_only_where_training_changes_it(
    home, monkeypatch, capsys, soft_prompt
):
    computed, one = [], heldout.text_losses

    def counted(model, dataset, texts, under, *more):
        computed.append(list(under))
        return one(model, dataset, texts, under, *more)

    monkeypatch.setattr(heldout, "text_losses", counted)
    said = here(home, monkeypatch, capsys, "train.py", "--features", "features/photos", "--lm", "lm", "--steps", "4",
                "--adapter", "mlp3", "--eval-every", "2", "--soft-prompt", str(soft_prompt), "--warm-start", "0",
                "--batch", "4", "--name", f"looks{soft_prompt}", "--lr", "0.05")  # fmt: skip
    conditions = ["real", "shuffled", "none"]
    assert computed == [conditions, conditions if soft_prompt else conditions[:2]]
    log = map(json.loads, (home / f"runs/looks{soft_prompt}/metrics.jsonl").read_text().splitlines())
    first, second = (row["heldout"] for row in log if "heldout" in row)
    assert list(second) == conditions and (first["none"] == second["none"]) == (not soft_prompt)
    assert "are looked at each time" not in said, "16 are held out"
