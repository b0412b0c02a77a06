"""Weights read from a file compute exactly what the weights that were saved did."""

import torch
from safetensors.torch import load_file, save_file

from periscope.adapters.tensors import load_tensors


def test_loaded_tensors_are_equal_and_aligned(tmp_path):
    torch.manual_seed(0)
    state = {f"layer{i}.weight": torch.randn(7, 5 + i) for i in range(12)}
    save_file(state, tmp_path / "a.safetensors")
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.values())
    in_file = load_file(tmp_path / "a.safetensors")
    assert any(tensor.data_ptr() % 64 for tensor in in_file.values()), "safetensors aligns now; load_tensors can go"
    assert len({tensor.untyped_storage().data_ptr() for tensor in loaded.values()}) == len(loaded)
