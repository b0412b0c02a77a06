"""Mamba's scan without kernels: the same numbers as transformers' loop, and time that grows with the length."""

import sys
import time
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconMambaConfig, Mamba2Config, MambaConfig

from adapters.selective_scan import selective_scan, use_selective_scan


def inputs(dtype: torch.dtype, length: int, width: int = 12, states: int = 5) -> dict:
    torch.manual_seed(0)
    made = {
        "hidden_states": torch.randn(2, width, length),
        "dt": torch.randn(2, width, length) - 2,
        "B": torch.randn(2, states, length),
        "C": torch.randn(2, states, length),
        "z": torch.randn(2, width, length),
    }
    fixed = {"A": -torch.rand(width, states) * 4, "D": torch.randn(width), "delta_bias": torch.randn(width)}
    return {name: value.to(dtype).requires_grad_() for name, value in made.items()} | fixed


@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
def test_scan_and_gradients_are_the_loops(length):
    results = []
    for scan in (selective_scan, reference):
        given = inputs(torch.float64 if scan is reference else torch.float32, length)
        out, state = scan(**given, delta_softplus=True, return_last_state=True)
        (out * torch.linspace(-1, 1, length)).sum().backward()
        grads = [given[name].grad for name in ("hidden_states", "dt", "B", "C", "z")]
        results.append([out.detach(), state.detach(), *grads])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours.double(), theirs.double(), atol=2e-5, rtol=1e-4)


def reference(hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state):
    """The recurrence written out (equations 2 to 4 of arXiv 2312.00752)."""
    u, A, D, delta_bias = hidden_states, A.double(), D.double(), delta_bias.double()
    step = torch.nn.functional.softplus(dt + delta_bias[:, None])
    state, outs = torch.zeros(*u.shape[:2], A.shape[1], dtype=torch.float64), []
    for t in range(u.shape[2]):
        state = torch.exp(step[:, :, t, None] * A) * state + (step * u)[:, :, t, None] * B[:, None, :, t]
        outs.append((state * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
    return torch.stack(outs, -1) * torch.nn.functional.silu(z), state


SIZES = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}


def model_of(config) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("config", [MambaConfig(**SIZES), FalconMambaConfig(**SIZES)], ids=lambda c: c.model_type)
def test_a_model_says_the_same_with_padding_and_with_its_cache(config, monkeypatch):
    model = model_of(config)
    module = sys.modules[type(model).__module__]
    scan = module.mamba_selective_scan
    monkeypatch.setattr(module, "mamba_selective_scan", scan.args[0] if isinstance(scan, partial) else scan)
    embeds, mask = torch.randn(2, 90, 64), torch.ones(2, 90, dtype=torch.long)
    mask[0, :30] = 0
    theirs = model(inputs_embeds=embeds, attention_mask=mask).logits
    assert "in PyTorch, in chunks" in use_selective_scan(model)
    assert "in PyTorch, in chunks" in use_selective_scan(model), "a second time changes nothing"
    ours = model(inputs_embeds=embeds, attention_mask=mask).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    greedy = {"inputs_embeds": embeds, "attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**greedy), model.generate(**greedy, use_cache=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", [MambaConfig(**SIZES), Mamba2Config(**SIZES, num_heads=8, head_dim=16, n_groups=1)])
def test_backward_time_grows_with_the_length_and_not_its_square(config, dtype):
    model = model_of(config).to(dtype)
    use_selective_scan(model)
    seconds = {}
    for length in (128, 512):
        runs = []
        for _ in range(4):
            embeds = torch.randn(1, length, 64, dtype=dtype, requires_grad=True)
            loss = model(inputs_embeds=embeds).logits.float().sum()
            began = time.perf_counter()
            loss.backward()
            runs.append(time.perf_counter() - began)
            assert torch.isfinite(embeds.grad).all()
        seconds[length] = min(runs)
    assert seconds[512] / seconds[128] < 8, seconds


def test_half_precision_gradients_are_near():
    """Of weights in half precision the scan itself is still computed in fp32."""
    model = model_of(MambaConfig(**SIZES))
    use_selective_scan(model)
    embeds = torch.randn(2, 100, 64)
    grads = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        leaf = embeds.clone().to(dtype).requires_grad_()
        logits = model.to(dtype)(inputs_embeds=leaf).logits.float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(200) % 50).backward()
        grads[dtype] = leaf.grad.float()
    for dtype, bound in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
        error = (grads[dtype] - grads[torch.float32]).norm() / grads[torch.float32].norm()
        assert error < bound, (dtype, error)
