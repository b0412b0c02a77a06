"""The benchmark of a GPU's memory, driven at a tiny size on the CPU: everything but what is measured of memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from adapters.projectors import FeatureShape
from benchmarks import memory

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


def test_it_is_mistral_7b():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(memory.MISTRAL)
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_241_732_096
    assert memory.LIMIT == 22 * 2**30 and memory.ADAPTERS["mlp"].tokens == 729


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said without a GPU")
def test_without_a_gpu_it_says_so():
    assert memory.measure(5) == {}
    call = [sys.executable, "-m", "benchmarks", "memory"]
    said = subprocess.run(call, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "memory measures a GPU, and torch finds none here" in said.stdout
