"""The scans of Mamba and Mamba-2 in plain PyTorch, with a backward pass that is linear in the sequence length.

Gu & Dao 2023, arXiv 2312.00752, equations 2 to 4; Dao & Gu 2024, arXiv 2405.21060, section 6. transformers' own loop
for Mamba indexes into whole sequences, and the gradient of each index has the size of the whole sequence, so its time
is quadratic: 128 tokens are slow, 700 impractical. Its chunks for Mamba-2 are linear, but keep a (chunk, chunk) matrix
of every head for the backward pass: 25 GiB for 729 tokens in the 2.7B model. Here only the states at chunk boundaries
are kept and the others recomputed, so memory is little more than the inputs and outputs.
"""

import importlib.util
import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK = 64
KERNEL = importlib.util.find_spec("mamba_ssm") is not None


class SelectiveScan(torch.autograd.Function):
    """h(t) = exp(dt(t) A) h(t-1) + dt(t) B(t) u(t), y(t) = C(t) h(t), all in fp32.

    Inputs: u, dt `(batch, length, width)`; A `(width, states)`; B, C `(batch, length, states)`; the h before the first
    step `(batch, width, states)`, or None for zeros. Outputs: y `(batch, length, width)` and the last h
    `(batch, width, states)`, which has no gradient, nor has the first h. A has one where it is trained.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        initial: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state = u.new_zeros(len(u), *A.shape) if initial is None else initial
        boundaries, outs = [], []
        for start in range(0, u.shape[1], CHUNK):
            boundaries.append(state)
            chunk = slice(start, start + CHUNK)
            states = _states(state, u[:, chunk], dt[:, chunk], A, B[:, chunk])[0]
            outs.append(torch.einsum("btdn,btn->btd", states, C[:, chunk]))
            state = states[:, -1].clone()  # a view would keep the chunk's other states in memory
        ctx.save_for_backward(u, dt, A, B, C, *boundaries)
        ctx.mark_non_differentiable(state)
        return torch.cat(outs, 1), state

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: object) -> tuple[torch.Tensor | None, ...]:
        u, dt, A, B, C, *boundaries = ctx.saved_tensors
        grad_u, grad_dt, grad_B, grad_C = (torch.empty_like(tensor) for tensor in (u, dt, B, C))
        grad_A = torch.zeros_like(A) if ctx.needs_input_grad[2] else None
        carried = torch.zeros_like(boundaries[0])
        for number in reversed(range(len(boundaries))):
            chunk = slice(number * CHUNK, number * CHUNK + CHUNK)
            states, decay = _states(boundaries[number], u[:, chunk], dt[:, chunk], A, B[:, chunk])
            before = torch.cat([boundaries[number][:, None], states[:, :-1]], 1)
            from_output = (grad[:, chunk, :, None] * C[:, chunk, None, :]).unbind(1)
            grad_states = []
            for step, decay_step in zip(reversed(from_output), reversed(decay.unbind(1)), strict=True):
                carried = carried + step
                grad_states.append(carried)
                carried = carried * decay_step
            grad_state = torch.stack(grad_states[::-1], 1)
            grad_input = torch.einsum("btdn,btn->btd", grad_state, B[:, chunk])  # of dt(t) u(t)
            grad_u[:, chunk] = grad_input * dt[:, chunk]
            through_decay = grad_state * before * decay  # of dt(t) A
            grad_dt[:, chunk] = (through_decay * A).sum(-1) + grad_input * u[:, chunk]
            if grad_A is not None:
                grad_A += torch.einsum("btdn,btd->dn", through_decay, dt[:, chunk])
            grad_B[:, chunk] = torch.einsum("btdn,btd->btn", grad_state, dt[:, chunk] * u[:, chunk])
            grad_C[:, chunk] = torch.einsum("btdn,btd->btn", states, grad[:, chunk])
        return grad_u, grad_dt, grad_A, grad_B, grad_C, None


def _states(
    state: torch.Tensor, u: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """All states of a chunk and the decays between them, both `(batch, length, width, states)`."""
    decay = torch.exp(dt[..., None] * A)
    added = (dt * u)[..., None] * B[:, :, None, :]
    states = []
    for decay_step, added_step in zip(decay.unbind(1), added.unbind(1), strict=True):
        state = decay_step * state + added_step
        states.append(state)
    return torch.stack(states, 1), decay


def selective_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: object,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Mamba's scan with the signature that transformers calls, in the kernel's layout.

    `hidden_states`, `dt`, `z` are `(batch, width, length)`, B and C `(batch, states, length)`, in any float dtype.
    Returns `(batch, width, length)` in the dtype of `hidden_states` and, with `return_last_state`, the last state
    `(batch, width, states)` in the same dtype.
    """
    u, step = hidden_states.float(), dt.float()
    if delta_bias is not None:
        step = step + delta_bias.float()[:, None]
    if delta_softplus:
        step = functional.softplus(step)
    sequences = [tensor.transpose(1, 2) for tensor in (u, step, B.float(), C.float())]
    out, state = SelectiveScan.apply(*sequences[:2], A.float(), *sequences[2:], _take_initial_state(len(u)))
    out = out.transpose(1, 2)
    if D is not None:
        out = out + u * D.float()[:, None]
    if z is not None:
        out = out * functional.silu(z.float())
    out = out.to(hidden_states.dtype)
    return (out, state.to(hidden_states.dtype)) if return_last_state else out


def chunk_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int | None = None,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **_: object,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Mamba-2's scan with the signature that transformers calls: h(t) = exp(dt(t) A) h(t-1) + dt(t) B(t) u(t),
    y(t) = C(t) h(t) + D u(t), with one decay per head.

    `hidden_states` are `(batch, length, heads, width)`, `dt` `(batch, length, heads)`, A, D and `dt_bias` `(heads,)`, B
    and C `(batch, length, groups, states)`, in any float dtype. Returns `(batch, length, heads, width)` in fp32 and,
    with `return_final_states`, the last h `(batch, heads, width, states)`. `chunk_size` is the kernel's and is ignored.
    """
    (texts, _length, heads, width), (groups, states) = hidden_states.shape, B.shape[2:]
    step = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    step = (functional.softplus(step) if dt_softplus else step).clamp(*dt_limit)
    state = hidden_states.new_zeros(texts, heads, width, states, dtype=torch.float32)
    if (prefix_state := _take_initial_state(texts)) is not None:
        initial_states = prefix_state
    state = (state if initial_states is None else initial_states.float()).unflatten(1, (groups, -1))
    outs = []
    # split, not slicing: the gradient of a slice has the size of the whole sequence
    for chunk in zip(*(tensor.split(CHUNK, 1) for tensor in (hidden_states, step, B, C)), strict=True):
        out, state = checkpoint(_chunk, state, *chunk, A, use_reentrant=False, preserve_rng_state=False)
        outs.append(out)
    out = torch.cat(outs, 1).flatten(2, 3)
    if D is not None:
        out = out + hidden_states.float() * D.float()[:, None]
    return (out, state.flatten(1, 2)) if return_final_states else out


def _chunk(
    state: torch.Tensor, u: torch.Tensor, step: torch.Tensor, B: torch.Tensor, C: torch.Tensor, A: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One chunk of Mamba-2's scan from the state before it, `(batch, groups, heads, width, states)`.

    Returns y `(batch, length, groups, heads, width)` and the state after it, heads counted within their group.
    """
    groups, length = B.shape[2], u.shape[1]
    B, C = B.float(), C.float()
    scaled = (u.float() * step[..., None]).unflatten(2, (groups, -1))
    logs = (step * A.float()).unflatten(2, (groups, -1)).permute(0, 2, 3, 1)
    below = torch.ones(length, length, dtype=torch.bool, device=u.device).tril(-1)
    # Each decay from s to t is a sum of its own, because the difference of two long sums loses digits.
    spans = logs[..., None].expand(*logs.shape, length).masked_fill(~below, 0).cumsum(-2)
    spans = spans.masked_fill(below.T, -torch.inf).exp()
    weights = torch.einsum("btgn,bsgn->bgts", C, B)[:, :, None] * spans
    since = logs.cumsum(-1).exp()
    carried = torch.einsum("btgn,bgrpn->btgrp", C, state) * since.permute(0, 3, 1, 2)[..., None]
    out = torch.einsum("bgrts,bsgrp->btgrp", weights, scaled) + carried
    remaining = spans[..., -1, :].permute(0, 3, 1, 2)[..., None]
    state = state * since[..., -1, None, None] + torch.einsum("bsgn,bsgrp->bgrpn", B, scaled * remaining)
    return out, state


_initial_state: ContextVar[torch.Tensor | None] = ContextVar("initial_state", default=None)


def start_next_scan_from(state: torch.Tensor) -> None:
    """Let the next of this module's scans begin with `state` `(1, ...)` in every row, instead of zeros. A mixer of
    Mamba has no argument for it.
    """
    _initial_state.set(state)


def _take_initial_state(rows: int) -> torch.Tensor | None:
    """What `start_next_scan_from` set, for this scan alone, in fp32 and for each of `rows`."""
    state = _initial_state.get()
    if state is None:
        return None
    _initial_state.set(None)
    return state.float().expand(rows, *state.shape[1:])


SCANS: dict[str, Callable] = {"mamba_selective_scan": selective_scan, "mamba2_chunk_scan": chunk_scan}


def use_selective_scan(model: nn.Module) -> str:
    """Make a state-space model of transformers scan by this module where `mamba-ssm`'s kernel isn't installed or its
    tensors aren't on a GPU. Returns what is used, for people; empty for a model without such a scan.
    """
    module = sys.modules[type(model).__module__]
    name = next((name for name in SCANS if hasattr(module, name)), None)
    if name is None:
        return ""
    original = getattr(module, name)
    if not isinstance(original, partial):
        setattr(module, name, partial(_choose, original, SCANS[name]))
    # transformers would warn at the first batch that its own loop is slow, but that isn't the one that runs.
    logging.getLogger("transformers.integrations.hub_kernels").addFilter(_not_about_slow_loop)
    if not KERNEL:
        return "selective scan in PyTorch, in chunks; pip install mamba-ssm for a faster one on a GPU"
    return "selective scan by mamba-ssm" if model.device.type == "cuda" else "selective scan in PyTorch, in chunks"


def _not_about_slow_loop(record: logging.LogRecord) -> bool:
    return "reference PyTorch implementation" not in record.getMessage()


def _choose(original: Callable, ours: Callable, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
    return (original if KERNEL and hidden_states.is_cuda else ours)(hidden_states, *args, **kwargs)
