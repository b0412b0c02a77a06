"""Cross-entropy that keeps nothing but the logits, with a few rows at a time in fp32.

The usual form holds an fp32 copy of the logits, their log-softmax and its gradient: 16 bytes per target and vocabulary
entry for fp16 logits. Here the backward pass computes the gradient in place of the logits, as Liger Kernel does on a
GPU (Hsu et al. 2024, arXiv 2410.10989), so the logits are overwritten.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

FP32_AT_ONCE = 1 << 22  # logits


def cross_entropy(logits: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of each target, `(targets,)` in fp32: row `rows[i]` of `logits` predicts the id `labels[i]`.

    `logits` are `(rows, vocabulary)` in any float dtype, `rows` and `labels` `(targets,)` int64. A row may have several
    targets. The backward pass overwrites the logits, so they can't be used for anything else.
    """
    return _CrossEntropy.apply(logits, rows, labels)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        sums = torch.cat([logits[chunk].float().logsumexp(-1) for chunk in _chunks(logits)])
        ctx.save_for_backward(logits, sums, rows, labels)
        return sums[rows] - logits[rows, labels].float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, sums, rows, labels = ctx.saved_tensors
        weights = torch.zeros_like(sums).index_add_(0, rows, grad)
        for chunk in _chunks(logits):
            gradient = (logits[chunk].float() - sums[chunk, None]).exp_().mul_(weights[chunk, None])
            inside = (rows >= chunk.start) & (rows < chunk.stop)
            row = (rows - chunk.start).clamp(0, len(gradient) - 1)
            gradient.index_put_((row, labels), -grad * inside, accumulate=True)
            logits[chunk] = gradient.to(logits.dtype)
        return logits, None, None


def _chunks(logits: torch.Tensor) -> list[slice]:
    count, size = len(logits), max(1, FP32_AT_ONCE // logits.shape[1])
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]
