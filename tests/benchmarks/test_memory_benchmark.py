"""The benchmark of a GPU's memory, driven at a tiny size on the CPU: everything but what is measured of memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from benchmarks import memory, utilisation
from periscope.adapters.projectors import FeatureShape

TINY = MistralConfig(
    vocab_size=500,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    sliding_window=None,
)


def test_it_trains_every_adapter_in_every_precision(monkeypatch):
    monkeypatch.setattr(memory, "BATCH", 4)
    monkeypatch.setattr(memory, "WORDS", 8)
    shapes = {"mlp16": FeatureShape("pooled", 1, 12), "mlp": FeatureShape("patches", 9, 12, (3, 3))}
    stepped = []
    take_step = memory.take_step

    def noting(model, *rest, **named):
        before = [parameter.clone() for parameter in model.adapter.parameters()]
        result = take_step(model, *rest, **named)
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.adapter.parameters(), strict=True))
        stepped.append((model.lm.precision, model.adapter.spec, moved))
        return result

    monkeypatch.setattr(memory, "take_step", noting)
    found = memory.measure_on("cpu", TINY, memory.PRECISIONS, shapes, rounds=1)
    assert list(found) == [f"{spec} on 7B in {precision}" for precision in memory.PRECISIONS for spec in shapes]
    for row in found.values():
        assert row["samples/s"] > 0 and row["micro-batch"] == 4 and 0 < row["planned GiB"] < 0.1
        assert "ratio" not in row
    assert all(moved for *_, moved in stepped)
    assert {tuple(name) for *name, _ in stepped} == {(p, s) for p in memory.PRECISIONS for s in shapes}


def test_the_share_of_the_rate_is_counted_by_real_tokens(monkeypatch):
    """At a rate of 4 operations a second for each parameter, the share is the real tokens of a second."""
    for name, value in {"MEDIA": 64, "BATCH": 4, "STEPS": 3, "WARM": 1, "SIDE": 64, "THEIRS": 2}.items():
        monkeypatch.setattr(utilisation, name, value)
    monkeypatch.setattr(utilisation, "SHAPE", FeatureShape("pooled", 1, 12))
    monkeypatch.setattr(utilisation, "caption_lengths", lambda count: [8] * count)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(TINY).parameters())
    monkeypatch.setattr(utilisation, "multiplications", lambda *_: 4.0 * parameters)
    found = utilisation.measure_on("cpu", TINY, ("fp16",), rounds=2)
    shares = [row for name, row in found.items() if name.startswith("share")]
    assert len(shares) == 1 and len(found) == 3
    (row,) = shares  # each text: <s>, 16 tokens of the medium, 8 words of which the first is one or two, </s>
    assert 26 <= round(row["ratio"] / row["samples/s"], 6) <= 27 and row["micro-batch"] == 4 and 0 <= row["waiting"] < 1
    assert all(0 < row["ratio"] < 50 for name, row in found.items() if name.startswith("without"))
    monkeypatch.undo()
    monkeypatch.setattr(utilisation, "SIDE", 256)
    assert 1e6 < utilisation.multiplications("cpu", torch.float32) < 1e13


def test_it_is_mistral_7b():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(memory.MISTRAL)
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_241_732_096
    assert memory.LIMIT == 22 * 2**30 and memory.ADAPTERS["mlp"].tokens == 729


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said without a GPU")
def test_without_a_gpu_it_says_so():
    assert memory.measure(5) == utilisation.measure(5) == {}
    call = [sys.executable, "-m", "benchmarks", "memory"]
    said = subprocess.run(call, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "memory measures a GPU, and torch finds none here" in said.stdout
