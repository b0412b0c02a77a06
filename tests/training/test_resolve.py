"""Options from flags, a recipe and an earlier run, resolved into one configuration."""

import math
import os
import shutil

import pytest
import toy_sets
from toy_runs import run_at, save_step

from periscope.errors import RecipeError, RunError
from periscope.recipes import load_recipe
from periscope.shards.write import SetWriter
from periscope.training.config import RENAMED, TrainConfig, option_names
from periscope.training.resolve import (
    Schedule,
    newest_features,
    refuse_changes,
    resumed,
    settle,
    settle_batch,
    settle_schedule,
)


def test_settings_merge_and_refuse(tmp_path):
    assert settle({"lr": 0.5}, {"lr": 0.1, "batch": 4}).lr == 0.5
    assert settle({}, {"batch": 4}).batch == 4
    with pytest.raises(RunError, match=r"--batch is 0"):
        settle({"batch": 0}, {})
    run = run_at(tmp_path / "r")
    with pytest.raises(RunError, match=r"started with lr 0.001, not 0.5"):
        resumed(run, {"lr": 0.5})
    assert resumed(run, {"lr": 0.001}).steps == 100
    save_step(run, 100)
    with pytest.raises(RunError, match="is finished"):
        resumed(run, {})
    with pytest.raises(RunError, match="texts changed"):
        refuse_changes({"texts": "a"}, texts="b")


def test_few_texts_are_taken_in_many_small_steps():
    for given, texts, chosen in ((None, 780, 8), (None, 1999, 8), (None, 2000, 32), (16, 780, 16), (64, 9999, 64)):
        config = settle({} if given is None else {"batch": given})
        settle_batch(config, texts)
        assert config.batch == chosen and config.texts_per_step == chosen


def test_recipes_name_the_nearest_and_refuse_what_they_cannot_set(tmp_path):
    demo = load_recipe("demo").train_options(option_names(), "mlp16", RENAMED)
    assert demo["lm"] == "demo/backbones/lm"
    own = tmp_path / "own.toml"
    own.write_text("[train]\nlr = 0.5\nbatch = 4\n[adapter.mlp16]\nlr = 0.25\n[adapter.linear16]\nbatch = 8\n")
    for spec, values in (("mlp16", (0.25, 4)), ("linear16", (0.5, 8)), ("mlp", (0.5, 4))):
        recipe = load_recipe(str(own)).train_options({"lr", "batch"}, spec, {})
        assert (recipe["lr"], recipe["batch"]) == values, spec
    with pytest.raises(RecipeError, match="did you mean demo"):
        load_recipe("dmo")
    bad = tmp_path / "r.toml"
    for text, sentence in (
        ("[train]\nlearning = 3\n", "sets learning"),
        ("[train", "is damaged"),
        ("[trian]\n", "trian"),
    ):
        bad.write_text(text)
        with pytest.raises(RecipeError, match=sentence):
            load_recipe(str(bad)).train_options({"lr"}, "mlp16", {})


def test_epochs_settle_the_steps(capsys):
    config = TrainConfig(epochs=1.5)
    assert settle_schedule(config, 101) == Schedule(152, 50, 50)
    assert config.steps == 152 and "1.5 epochs of 101" in capsys.readouterr().out
    for config, steps in ((TrainConfig(), 500), (TrainConfig(steps=7, epochs=3.0), 7)):
        assert settle_schedule(config, 101).steps == config.steps == steps
        assert config.logging.eval_every == config.logging.save_every == max(50, math.ceil(steps / 8))


def test_the_newest_set_without_words_is_passed_over(tmp_path):
    toy_sets.make(tmp_path / "told", range(3))
    with SetWriter(tmp_path / "mute", "image", toy_sets.ENCODER, toy_sets.FEATURES) as writer:
        with writer.shard() as shard:
            stored = {kind: toy_sets.given(1, kind).half() for kind in toy_sets.FEATURES}
            shard.add("a", stored, {"modality": "image", "origin": "a.jpg", "sha256": "0" * 64})
        writer.finish([], set(), lambda _: [], [])
    os.utime(tmp_path / "told/manifest.json", (1, 1))
    assert newest_features(tmp_path, "pooled").name == "told"
    assert newest_features(tmp_path, "pooled", words_apart=True).name == "mute"
    shutil.rmtree(tmp_path / "told")
    with pytest.raises(RunError, match=r"no feature set here has words to train on \(.*mute\); .* or pass --text FILE"):
        newest_features(tmp_path, "pooled")
