"""Weights of others: read where they are tensors, and never run."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from periscope.errors import AdapterError, PrecomputeError
from periscope.weights import load_released, load_state


class Evil:
    """What a file can ask an unpickler for."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_both_formats_and_a_trainers_checkpoint_hold_the_same_tensors(tmp_path):
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    torch.save({"state_dict": state | {"steps": 3}, "epoch": 1}, tmp_path / "a.ckpt")
    for name in ("a.safetensors", "a.pt", "a.ckpt"):
        loaded = load_state(tmp_path / name, PrecomputeError)
        assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)
    assert load_released(tmp_path / "a.ckpt", AdapterError)["epoch"] == 1


@pytest.mark.parametrize("error", [AdapterError, PrecomputeError])
def test_what_would_run_code_or_is_no_file_of_weights_is_one_sentence(tmp_path, error):
    torch.save({"a": Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "pointer.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 20)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "bare.pt")
    for name, why in {
        "evil.pt": r"isn't read: it asks for \w+\.mkdir, which is no tensor and isn't run",
        "bare.bin": "isn't read: ",
        "empty.pth": "isn't read: it is empty; download it again",
        "pointer.safetensors": "isn't read: it is a Git LFS pointer; run `git lfs pull` there",
        "cut.safetensors": "isn't read: ",
        "list.pt": "isn't read: it holds something else than a model's tensors",
        "bare.pt": "isn't read: it holds no tensors by name",
        "none.pt": "doesn't exist",
    }.items():
        with pytest.raises(error, match=f"{name} {why}") as refused:
            load_state(tmp_path / name, error)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()
