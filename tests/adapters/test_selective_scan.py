"""State-space scans without kernels: transformers' own numbers, and time and memory that grow with the length."""

import sys
import time
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconMambaConfig, Mamba2Config, MambaConfig
from transformers.models.mamba2 import modeling_mamba2

from periscope.adapters.lm import selective_scan as scans
from periscope.adapters.lm.selective_scan import chunk_scan, selective_scan, use_selective_scan


def inputs(dtype: torch.dtype, length: int, width: int = 12, states: int = 5) -> dict:
    torch.manual_seed(0)
    made = {
        "hidden_states": torch.randn(2, width, length),
        "dt": torch.randn(2, width, length) - 2,
        "B": torch.randn(2, states, length),
        "C": torch.randn(2, states, length),
        "z": torch.randn(2, width, length),
    }
    made |= {"A": -torch.rand(width, states) * 4, "D": torch.randn(width), "delta_bias": torch.randn(width)}
    return {name: value.to(dtype).requires_grad_() for name, value in made.items()}


@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
def test_scan_and_gradients_are_the_loops(length):
    results = []
    for scan in (selective_scan, reference):
        given = inputs(torch.float64 if scan is reference else torch.float32, length)
        out, state = scan(**given, delta_softplus=True, return_last_state=True)
        (out * torch.linspace(-1, 1, length)).sum().backward()
        grads = [value.grad for value in given.values()]
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


def inputs_of_heads(dtype: torch.dtype, length: int) -> tuple[dict, dict]:
    """Six heads of width 5 in three groups of 7 states each, two texts."""
    torch.manual_seed(0)
    made = {
        "hidden_states": torch.randn(2, length, 6, 5),
        "dt": torch.randn(2, length, 6) - 1,
        "B": torch.randn(2, length, 3, 7),
        "C": torch.randn(2, length, 3, 7),
    }
    fixed = {"A": -torch.rand(6) * 16, "D": torch.randn(6), "dt_bias": torch.randn(6)}
    return {name: value.to(dtype).requires_grad_() for name, value in made.items()}, fixed


def reference_of_heads(hidden_states, dt, B, C, A, D, dt_bias):
    """The recurrence written out (section 2 of arXiv 2405.21060), a head's A being one number."""
    step = torch.nn.functional.softplus(dt + dt_bias)
    B, C = B.repeat_interleave(2, 2), C.repeat_interleave(2, 2)
    state, outs = torch.zeros(2, 6, 5, 7, dtype=torch.float64), []
    for t in range(dt.shape[1]):
        u = hidden_states[:, t]
        fed = (step[:, t, :, None] * u)[..., None] * B[:, t, :, None]
        state = torch.exp(step[:, t] * A)[..., None, None] * state + fed
        outs.append((state * C[:, t, :, None]).sum(-1) + D[:, None] * u)
    return torch.stack(outs, 1), state


@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
def test_mamba2s_scan_and_gradients_are_the_recurrences(length):
    results = []
    for scan in (chunk_scan, reference_of_heads):
        given, fixed = inputs_of_heads(torch.float64 if scan is reference_of_heads else torch.float32, length)
        ours = {"dt_softplus": True, "return_final_states": True, "chunk_size": 256} if scan is chunk_scan else {}
        out, state = scan(**given, **fixed, **ours)
        (out * torch.linspace(-1, 1, length)[:, None, None]).sum().backward()
        results.append([out.detach(), state.detach(), *(given[name].grad for name in given)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours.double(), theirs.double(), atol=2e-5, rtol=1e-4)


def test_mamba2s_scan_goes_on_from_a_state_and_keeps_its_steps_within_limits():
    given, fixed = inputs_of_heads(torch.float32, 100)
    how = {**fixed, "dt_softplus": True, "return_final_states": True, "dt_limit": (0.01, 0.5)}
    whole, last = chunk_scan(**given, **how)
    first, state = chunk_scan(**{name: value[:, :30] for name, value in given.items()}, **how)
    second, end = chunk_scan(**{name: value[:, 30:] for name, value in given.items()}, **how, initial_states=state)
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-5) and torch.allclose(end, last, atol=1e-5)
    assert not torch.allclose(chunk_scan(**given, **{**how, "dt_limit": (0.0, 9.0)})[0], whole, atol=1e-2)


def kept_bytes(scan, leaves: list[torch.Tensor]) -> int:
    """Bytes that a scan keeps for its backward pass besides its inputs, each storage once."""
    seen = {}

    def note(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    for leaf in leaves:
        leaf.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = scan()
    del result
    return sum(storage.nbytes() for storage in seen.values()) - sum(leaf.nbytes for leaf in leaves)


def test_mamba_keeps_its_borders_and_not_the_states_between():
    u, dt = torch.randn(2, 1, 32, 512)
    B, C = torch.randn(2, 1, 16, 512)
    kept = kept_bytes(lambda: selective_scan(u, dt, -torch.rand(32, 16), B, C), [u, dt, B, C])
    states = 512 * 32 * 16 * 4
    assert kept < states / scans.CHUNK + 4 * 512 * 32 * 4


def test_mamba2_keeps_a_fraction_for_the_backward_pass():
    """Of the 2.7B model's layer, with 16 of its 80 heads."""
    kept = []
    for scan in (chunk_scan, modeling_mamba2.mamba2_chunk_scan):
        scan = scan.args[0] if isinstance(scan, partial) else scan
        u, dt = torch.randn(1, 256, 16, 64), torch.rand(1, 256, 16)
        B, C = torch.randn(2, 1, 256, 1, 128)
        given = {"hidden_states": u, "dt": dt, "A": -torch.rand(16), "B": B, "C": C, "chunk_size": 256}
        kept.append(kept_bytes(partial(scan, **given), [u, dt, B, C]))
    assert kept[0] < 0.2 * kept[1]


SIZES = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
MAMBA, FALCON = MambaConfig(**SIZES), FalconMambaConfig(**SIZES)
MAMBA2 = Mamba2Config(**SIZES, num_heads=8, head_dim=16, n_groups=2)


def model_of(config) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("config", [MAMBA, FALCON, MAMBA2], ids=lambda c: c.model_type)
def test_a_model_says_the_same_with_padding_and_with_its_cache(config, monkeypatch):
    model = model_of(config)
    module = sys.modules[type(model).__module__]
    name = next(name for name in scans.SCANS if hasattr(module, name))
    scan = getattr(module, name)
    monkeypatch.setattr(module, name, scan.args[0] if isinstance(scan, partial) else scan)
    embeds, mask = torch.randn(2, 90, 64), torch.ones(2, 90, dtype=torch.long)
    mask[0, :30] = 0
    theirs = model(inputs_embeds=embeds, attention_mask=mask).logits
    assert "in PyTorch, in chunks" in use_selective_scan(model)
    assert "in PyTorch, in chunks" in use_selective_scan(model), "a second time changes nothing"
    used = []
    chosen = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given, **named: used.append(name) or chosen(*given, **named))
    ours = model(inputs_embeds=embeds, attention_mask=mask).logits
    assert torch.allclose(ours, theirs, atol=1e-5) and len(used) == 2
    greedy = {"inputs_embeds": embeds, "attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**greedy), model.generate(**greedy, use_cache=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", [MAMBA, MAMBA2], ids=lambda c: c.model_type)
def test_backward_time_grows_with_the_length_and_not_its_square(config, dtype):
    model = model_of(config).to(dtype)
    use_selective_scan(model)
    seconds = {}
    for length in (128, 512):
        runs = []
        for _ in range(3):
            embeds = torch.randn(1, length, 64, dtype=dtype, requires_grad=True)
            loss = model(inputs_embeds=embeds).logits.float().sum()
            began = time.perf_counter()
            loss.backward()
            runs.append(time.perf_counter() - began)
            assert torch.isfinite(embeds.grad).all()
        seconds[length] = min(runs)
    assert seconds[512] / seconds[128] < 8, seconds


@pytest.mark.parametrize("config", [MAMBA, FALCON, MAMBA2], ids=lambda c: c.model_type)
def test_half_precision_gradients_are_near(config):
    """Of weights in half precision the scan itself is still computed in fp32."""
    model = model_of(config)
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


class OnGpu:
    is_cuda = True


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("tensor", [OnGpu(), torch.zeros(1)])
def test_it_is_left_to_the_kernel_where_that_is_installed_and_the_tensors_are_on_a_gpu(kernel, tensor, monkeypatch):
    monkeypatch.setattr(scans, "KERNEL", kernel)
    chosen = scans._choose(lambda *_, **__: "theirs", lambda *_, **__: "ours", tensor, 1, two=2)
    assert chosen == ("theirs" if kernel and tensor.is_cuda else "ours")


def test_what_is_taken_is_said(monkeypatch):
    model = model_of(MAMBA2)
    for kernel, said in ((False, "pip install mamba-ssm"), (True, "in chunks")):
        monkeypatch.setattr(scans, "KERNEL", kernel)
        assert said in use_selective_scan(model)
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert use_selective_scan(model) == "selective scan by mamba-ssm"
    assert use_selective_scan(torch.nn.Linear(2, 2)) == ""
