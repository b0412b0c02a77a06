"""A training and its scores on a feature set of the Hub, as somebody does who has neither pictures nor encoder."""

import json
import sys
import tomllib

import hub
import pytest

from periscope import eval as eval_script
from periscope import train
from periscope.shards.sharing.push import SetPush, push_set

pytestmark = pytest.mark.slow


def test_a_set_of_the_hub_is_trained_and_scored_on(photo_home, tmp_path, monkeypatch):
    stand_in = hub.Hub()
    with stand_in.serving() as address:
        hub.point_to(monkeypatch, address, tmp_path)
        push_set(SetPush(photo_home / "features" / "photos", "user/photos", texts=True), lambda _: True)
        monkeypatch.chdir(tmp_path)
        options = ["--adapter", "mlp2", "--lm", str(photo_home / "lm"), "--steps", "4", "--device", "cpu"]
        for features, name in (("hf://user/photos", "whole"), ("hf://user/photos=1", "weighed")):
            monkeypatch.setattr(sys, "argv", ["train.py", "--features", features, "--name", name, *options])
            train.main()
        config = tomllib.loads((tmp_path / "runs" / "whole" / "config.toml").read_text())
        assert config["features"] == "features/user--photos"
    # From here on there is no Hub: what was fetched is enough.
    monkeypatch.setattr(sys, "argv", ["eval.py", "--run", "runs/whole", "--features", "hf://user/photos",
                                      "--device", "cpu", "--controls", "shuffled"])  # fmt: skip
    eval_script.main()
    scores = json.loads((tmp_path / "runs" / "whole" / "eval.json").read_text())
    assert scores["features"] == "features/user--photos" and scores["splits"]
