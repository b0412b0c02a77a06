"""A state-space model and a transformer under one recipe by changing one name, as VL-Mamba and Pythia-VL are."""

import json
import sys

import pytest
import tiny
from safetensors.torch import load_file


@pytest.mark.parametrize(("seed", "alike"), [("0", True), ("1", False)])
def test_another_language_model_changes_neither_the_order_nor_the_projectors_start(
    photo_home, tmp_path, monkeypatch, seed, alike
):
    """With a learning rate of 0 the adapter that is saved is the one that was begun with. A second seed differs."""
    from train import main

    starts, orders = [], []
    for family, given in (("gpt_neox", "0"), ("mamba", seed)):
        tiny.save_language_model(family, tmp_path / family)
        monkeypatch.chdir(photo_home)
        flags = [
            "--features",
            "features/photos",
            "--lm",
            str(tmp_path / family),
            "--name",
            f"one-{family}-{given}-{seed}",
        ]
        flags += ["--adapter", "mlp3", "--steps", "6", "--batch", "4", "--lr", "0", "--seed", given, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["train.py", *flags])
        main()
        run = photo_home / "runs" / f"one-{family}-{given}-{seed}"
        starts.append(load_file(run / "steps/000006/adapter/adapter.safetensors"))
        rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        orders.append([row["targets"] for row in rows if "targets" in row])
    assert (orders[0] == orders[1]) == alike and len(orders[0]) == 6
    assert all((starts[0][name] == starts[1][name]).all() for name in starts[0]) == alike
