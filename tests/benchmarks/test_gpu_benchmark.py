"""The benchmark of a whole card, driven at a tiny size on the CPU: everything but what is measured of memory."""

import math

import pytest
from transformers import LlamaConfig

from benchmarks import gpu, memory
from periscope.adapters.projectors import FeatureShape

TINY = LlamaConfig(
    vocab_size=500,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
BY_COMPILER = ("torch.compile", "FlexAttention")  # need a C++ compiler here


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(memory, "BATCH", 4)
    monkeypatch.setattr(memory, "WORDS", 8)
    for name, value in {"STEPS": 1, "MEDIA": 96, "LOADED": 3, "CAPTIONS": 2}.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "multiplications", lambda *_: 1e9)
    patches = FeatureShape("patches", 9, 12, (3, 3))
    monkeypatch.setattr(gpu, "ADAPTERS", {"mlp16": ("mlp16", gpu.POOLED), "mlp, 9 patches": ("mlp", patches)})


def test_every_case_gives_a_row(small, monkeypatch):
    for name in ("compiled", "flexible"):
        monkeypatch.setattr(gpu, name, lambda _, name=name: 1 / 0)
    found = gpu.measure_on("cpu", {"Tiny": TINY}, ("fp16",), rounds=1)
    cases = [f"{adapter} on Tiny in fp16" for adapter in gpu.ADAPTERS]
    levers = [name for name in found if ", on against off, " in name]
    assert set(found) == {*cases, "waiting for data, mlp16 on Tiny", *levers} and len(levers) == 6
    for name in cases:
        row = found[name]
        assert (
            row["ratio"] > 0 and row["samples/s"] == pytest.approx(4000 / row["ms a step"]) and row["micro-batch"] == 4
        )
    assert 0 <= found["waiting for data, mlp16 on Tiny"]["ratio"] < 1
    for name in levers:
        if name.startswith(BY_COMPILER):
            assert math.isnan(found[name]["ratio"]) and found[name]["failed"] == "ZeroDivisionError: division by zero"
        else:
            assert found[name]["ratio"] > 0 and found[name]["losses apart"] < 1e-4, name


def test_what_there_is_no_time_for_is_said(small, monkeypatch):
    monkeypatch.setattr(gpu, "BUDGET", -1)
    found = gpu.measure_on("cpu", {"Tiny": TINY}, ("fp16",), rounds=1)
    assert [row["failed"] for row in found.values()] == ["no time was left for it"]


def test_the_models_have_their_published_sizes():
    import torch
    from transformers import AutoModelForCausalLM

    sizes = {}
    for name, config in gpu.MODELS.items():
        with torch.device("meta"):
            sizes[name] = AutoModelForCausalLM.from_config(config).num_parameters()
    assert sizes == {"SmolLM2-135M": 134_515_008, "Mistral-7B": 7_241_732_096, "Qwen3-4B": 4_022_468_096}
