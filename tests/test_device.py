"""The choice of a device and the rules of each kind. There is no Mac here: torch is told that there is."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from periscope import device
from periscope.adapters.lm.precision import choose_precision, trained_precision
from periscope.device import RULES, choose_device, rules_of
from periscope.errors import AdapterError, DeviceError, RunError
from periscope.training.config import TrainConfig
from periscope.training.distributed import join
from periscope.training.memory.plan import tuning_of
from periscope.training.step import _halve

MPS = torch.device("mps")
GIB = 1 << 30


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Mac with Apple silicon, as torch would describe it; `macos` is its version."""
    state = SimpleNamespace(macos=(14, 0), held=2 * GIB, emptied=0)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delenv(device.MPS_FALLBACK, raising=False)
    monkeypatch.setattr(device, "_gpu_in_machine", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: state.macos >= version)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: state.held)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: setattr(state, "emptied", state.emptied + 1))
    yield state
    os.environ.pop(device.MPS_FALLBACK, None)


def test_apples_gpu_is_taken_when_it_is_named(mac: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    assert choose_device("mps") == "mps"
    assert os.environ[device.MPS_FALLBACK] == "1"
    assert device.gpu_name() == "Apple's GPU"
    assert capsys.readouterr().err == ""
    assert choose_device("auto") == "cpu"
    assert "note: --device mps computes on this Mac's GPU" in capsys.readouterr().err


def test_a_fallback_that_was_set_stays(mac: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.MPS_FALLBACK, "0")
    choose_device("mps")
    assert os.environ[device.MPS_FALLBACK] == "0"


@pytest.mark.parametrize(
    ("platform", "built", "why"),
    [("linux", False, "no Mac"), ("darwin", False, "built without it"), ("darwin", True, "macOS older than 14")],
)
def test_why_apples_gpu_cant_be_used(platform: str, built: bool, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.MPS_FALLBACK, "1")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
    with pytest.raises(DeviceError, match=f"--device mps was asked for, but .*{why}.*; pass --device cpu"):
        choose_device("mps")


def test_precision_on_apples_gpu(mac: SimpleNamespace) -> None:
    assert choose_precision("auto", MPS, None)[0] == "fp16"
    assert choose_precision("auto", MPS, torch.bfloat16) == (
        "bf16",
        "the model was trained in bf16 and Apple's GPU computes in it",
    )
    assert trained_precision("auto", MPS) == ("fp32", None)
    assert trained_precision("mixed", MPS) == ("fp32", torch.bfloat16)
    mac.macos = (13, 3)
    assert choose_precision("auto", MPS, torch.bfloat16)[0] == "fp16"
    assert choose_precision("auto", MPS, torch.bfloat16, overflows=True)[0] == "fp32"
    for choose in (lambda: choose_precision("bf16", MPS, None), lambda: trained_precision("bf16", MPS)):
        with pytest.raises(AdapterError, match="bf16: Apple's GPU computes in bf16 from macOS 14 on; use fp"):
            choose()
    for bits in ("8bit", "4bit"):
        with pytest.raises(AdapterError, match=f"{bits}: bitsandbytes isn't used on Apple's GPU; use fp16"):
            choose_precision(bits, MPS, None)


def test_memory_of_apples_gpu(mac: SimpleNamespace) -> None:
    assert device.free_memory(MPS) == 10 * GIB
    assert device.peak_memory("mps") == 2 * GIB
    mac.held = 13 * GIB
    assert device.free_memory(MPS) == 0
    device.empty_cache(MPS)
    assert mac.emptied == 1
    assert device.free_memory("cpu") is device.peak_memory("cpu") is None


def test_a_full_memory_is_known_on_each_device(mac: SimpleNamespace) -> None:
    assert device.out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert device.out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, other: 1 GB)"))
    assert not device.out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert _halve(5, MPS) == 3 and mac.emptied == 1
    with pytest.raises(RunError, match="memory of Apple's GPU; try a smaller --lm"):
        _halve(1, MPS)


def test_what_is_only_for_nvidias_gpus(mac: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = rules_of("mps")
    assert not (rules.pinned or rules.loaders or rules.fused or rules.quantizes)
    assert rules_of(torch.device("cuda", 3)) is RULES["cuda"]
    config = TrainConfig()
    config.optim.optimizer = "adamw8bit"
    assert [tuning_of(config, kind).optimizer for kind in ("cuda", "mps", "cpu")] == ["adamw8bit", "adamw", "adamw"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="2 processes, and Apple's GPU trains in one"):
        join("mps")
