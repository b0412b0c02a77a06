"""The scans of Mamba and Mamba-2 in plain PyTorch, with a backward pass that is linear in the length.

Gu & Dao 2023, arXiv 2312.00752, equations 2 to 4; Dao & Gu 2024, arXiv 2405.21060, section 6. transformers' own loop
for Mamba indexes into whole sequences, and the gradient of each index is a tensor of the whole sequence: 128 tokens are
slow, and 700 hopeless. Its chunks for Mamba-2 are linear, but keep a (chunk, chunk) matrix of every head for the
backward pass: 25 GiB for 729 tokens in the 2.7B model. Here states are kept at the chunks' borders alone and made again
in the backward pass, so memory hardly grows beyond what goes in and out.
"""

import importlib.util
import logging
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK = 64
KERNEL = importlib.util.find_spec("mamba_ssm") is not None


class SelectiveScan(torch.autograd.Function):
    """h(t) = exp(dt(t) A) h(t-1) + dt(t) B(t) u(t), y(t) = C(t) h(t), all in fp32.

    u, dt `(batch, length, width)`; A `(width, states)`; B, C `(batch, length, states)`. Out: y `(batch, length, width)`
    and the last h `(batch, width, states)`, which has no gradient. A is taken as frozen.
    """

    @staticmethod
    def forward(ctx, u, dt, A, B, C):
        state = u.new_zeros(len(u), *A.shape)
        borders, outs = [], []
        for start in range(0, u.shape[1], CHUNK):
            borders.append(state)
            part = slice(start, start + CHUNK)
            states = _states(state, u[:, part], dt[:, part], A, B[:, part])[0]
            outs.append(torch.einsum("btdn,btn->btd", states, C[:, part]))
            state = states[:, -1].clone()  # alone, so that the chunk's other states are let go
        ctx.save_for_backward(u, dt, A, B, C, *borders)
        ctx.mark_non_differentiable(state)
        return torch.cat(outs, 1), state

    @staticmethod
    def backward(ctx, grad, _):
        u, dt, A, B, C, *borders = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (u, dt, B, C)]
        carried = torch.zeros_like(borders[0])
        for number in reversed(range(len(borders))):
            part = slice(number * CHUNK, number * CHUNK + CHUNK)
            states, decay = _states(borders[number], u[:, part], dt[:, part], A, B[:, part])
            before = torch.cat([borders[number][:, None], states[:, :-1]], 1)
            into = (grad[:, part, :, None] * C[:, part, None, :]).unbind(1)
            flows = []
            for step, kept in zip(reversed(into), reversed(decay.unbind(1)), strict=True):
                carried = carried + step
                flows.append(carried)
                carried = carried * kept
            flow = torch.stack(flows[::-1], 1)  # the gradient of each state
            fed = torch.einsum("btdn,btn->btd", flow, B[:, part])
            grads[0][:, part] = fed * dt[:, part]
            grads[1][:, part] = (flow * before * decay * A).sum(-1) + fed * u[:, part]
            grads[2][:, part] = torch.einsum("btdn,btd->btn", flow, dt[:, part] * u[:, part])
            grads[3][:, part] = torch.einsum("btdn,btd->btn", states, grad[:, part])
        return grads[0], grads[1], None, grads[2], grads[3]


def _states(state, u, dt, A, B) -> tuple[torch.Tensor, torch.Tensor]:
    """All states of a chunk and the decays between them, both `(batch, length, width, states)`."""
    decay = torch.exp(dt[..., None] * A)
    added = (dt * u)[..., None] * B[:, :, None, :]
    states = []
    for kept, new in zip(decay.unbind(1), added.unbind(1), strict=True):
        state = kept * state + new
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
    """The scan as transformers calls it, in the kernel's layout: `hidden_states`, `dt`, `z` `(batch, width, length)`, B
    and C `(batch, states, length)`, any float dtype; out `(batch, width, length)` in `hidden_states`' dtype and, when
    asked for, the last state in the same.
    """
    u, step = hidden_states.float(), dt.float()
    if delta_bias is not None:
        step = step + delta_bias.float()[:, None]
    if delta_softplus:
        step = functional.softplus(step)
    sequences = [tensor.transpose(1, 2) for tensor in (u, step, B.float(), C.float())]
    out, state = SelectiveScan.apply(*sequences[:2], A.float(), *sequences[2:])
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
    """Mamba-2's scan as transformers calls it: h(t) = exp(dt(t) A) h(t-1) + dt(t) B(t) u(t), y(t) = C(t) h(t) + D u(t),
    with one decay a head.

    `hidden_states` `(batch, length, heads, width)`, `dt` `(batch, length, heads)`, A, D, `dt_bias` `(heads,)`, B and C
    `(batch, length, groups, states)`, any float dtype; out `(batch, length, heads, width)` in fp32 and, when asked for,
    the last h `(batch, heads, width, states)`. `chunk_size` is the kernel's and isn't used.
    """
    (texts, _length, heads, width), (groups, states) = hidden_states.shape, B.shape[2:]
    step = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    step = (functional.softplus(step) if dt_softplus else step).clamp(*dt_limit)
    state = hidden_states.new_zeros(texts, heads, width, states, dtype=torch.float32)
    state = (state if initial_states is None else initial_states.float()).unflatten(1, (groups, -1))
    outs = []
    # split, not slices: the gradient of a slice is a tensor of the whole sequence
    for part in zip(*(tensor.split(CHUNK, 1) for tensor in (hidden_states, step, B, C)), strict=True):
        out, state = checkpoint(_chunk, state, *part, A, use_reentrant=False, preserve_rng_state=False)
        outs.append(out)
    out = torch.cat(outs, 1).flatten(2, 3)
    if D is not None:
        out = out + hidden_states.float() * D.float()[:, None]
    return (out, state.flatten(1, 2)) if return_final_states else out


def _chunk(state, u, step, B, C, A) -> tuple[torch.Tensor, torch.Tensor]:
    """One chunk of Mamba-2's scan from the state before it, `(batch, groups, heads, width, states)`; out: y
    `(batch, length, groups, heads, width)` and the state after it, heads counted within their group.
    """
    groups, length = B.shape[2], u.shape[1]
    B, C = B.float(), C.float()
    fed = (u.float() * step[..., None]).unflatten(2, (groups, -1))
    logs = (step * A.float()).unflatten(2, (groups, -1)).permute(0, 2, 3, 1)
    below = torch.ones(length, length, dtype=torch.bool, device=u.device).tril(-1)
    # each decay from s to t is a sum of its own, because the difference of two long sums loses digits
    spans = logs[..., None].expand(*logs.shape, length).masked_fill(~below, 0).cumsum(-2)
    spans = spans.masked_fill(below.T, -torch.inf).exp()
    weights = torch.einsum("btgn,bsgn->bgts", C, B)[:, :, None] * spans
    since = logs.cumsum(-1).exp()
    carried = torch.einsum("btgn,bgrpn->btgrp", C, state) * since.permute(0, 3, 1, 2)[..., None]
    out = torch.einsum("bgrts,bsgrp->btgrp", weights, fed) + carried
    left = spans[..., -1, :].permute(0, 3, 1, 2)[..., None]
    state = state * since[..., -1, None, None] + torch.einsum("bsgn,bsgrp->bgrpn", B, fed * left)
    return out, state


SCANS = {"mamba_selective_scan": selective_scan, "mamba2_chunk_scan": chunk_scan}


def use_selective_scan(model: nn.Module) -> str:
    """Let a state-space model of transformers scan by this module where `mamba-ssm`'s kernel isn't installed or its
    tensors aren't on a GPU. Returns what is used, for people; empty for a model without such a scan.
    """
    module = sys.modules[type(model).__module__]
    name = next((name for name in SCANS if hasattr(module, name)), None)
    if name is None:
        return ""
    theirs = getattr(module, name)
    if not isinstance(theirs, partial):
        setattr(module, name, partial(_choose, theirs, SCANS[name]))
    # It would say at the first batch that its own loop is slow, which isn't the one that runs.
    logging.getLogger("transformers.integrations.hub_kernels").addFilter(_about_something_else)
    if not KERNEL:
        return "selective scan in PyTorch, in chunks; pip install mamba-ssm for a faster one on a GPU"
    return "selective scan by mamba-ssm" if model.device.type == "cuda" else "selective scan in PyTorch, in chunks"


def _about_something_else(record: logging.LogRecord) -> bool:
    return "reference PyTorch implementation" not in record.getMessage()


def _choose(theirs: Callable, ours: Callable, hidden_states: torch.Tensor, *rest: object, **named: object) -> object:
    return (theirs if KERNEL and hidden_states.is_cuda else ours)(hidden_states, *rest, **named)
