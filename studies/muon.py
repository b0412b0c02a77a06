"""Muon (https://kellerjordan.github.io/posts/muon) with its arithmetic in fp32.

torch.optim.Muon makes each gradient orthogonal in bf16, for which many CPUs have no instructions: there this takes
fourteen times as long as in fp32, and three quarters of a small model's step.
"""

from collections.abc import Iterable

import torch
from torch.optim import _muon


def muon(matrices: Iterable[torch.Tensor], lr: float, weight_decay: float) -> torch.optim.Muon:
    """The optimizer for `(rows, columns)` matrices, at the learning rates of AdamW."""
    _muon._zeropower_via_newtonschulz = _orthogonal
    return torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")


def _orthogonal(
    grad: torch.Tensor, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float
) -> torch.Tensor:
    """Newton-Schulz iteration, as torch 2.15.0's `_zeropower_via_newtonschulz`."""
    a, b, c = ns_coefficients
    tall = grad.size(0) > grad.size(1)
    found = grad.float().T if tall else grad.float()
    found = found / found.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if tall else found
