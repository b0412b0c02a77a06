"""Cross-entropy that keeps nothing beside the logits, a few rows of which are in fp32 at a time.

The usual form holds an fp32 copy of the logits, their log-softmax and its gradient: 16 bytes for each word of the
vocabulary and target in fp16. Here the gradient is made from the logits in the backward pass, in their own place, as
Liger Kernel does on a GPU (Hsu et al. 2024, arXiv 2410.10989); what they were is lost then.
"""

import torch
from torch.autograd.function import once_differentiable

AT_ONCE = 1 << 22  # logits in fp32


def cross_entropy(logits: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss `(targets,)` in fp32 of each target: row `rows[i]` of `logits` `(rows, vocabulary)`, any float dtype,
    must say the id `labels[i]`. One row may have several targets. The logits serve one backward pass and nothing else.
    """
    return _CrossEntropy.apply(logits, rows, labels)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, rows, labels):
        sums = torch.cat([logits[some].float().logsumexp(-1) for some in _parts(logits)])
        ctx.save_for_backward(logits, sums, rows, labels)
        return sums[rows] - logits[rows, labels].float()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        logits, sums, rows, labels = ctx.saved_tensors
        weights = torch.zeros_like(sums).index_add_(0, rows, grad)
        for some in _parts(logits):
            part = (logits[some].float() - sums[some, None]).exp_().mul_(weights[some, None])
            inside = (rows >= some.start) & (rows < some.stop)
            places = (rows - some.start).clamp(0, len(part) - 1)
            part.index_put_((places, labels), -grad * inside, accumulate=True)
            logits[some] = part.to(logits.dtype)
        return logits, None, None


def _parts(logits: torch.Tensor) -> list[slice]:
    count, size = len(logits), max(1, AT_ONCE // logits.shape[1])
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]
