"""One optimizer step: the learning rate, the loss over micro-batches, the gradient."""

import math
import sys

import torch

from adapters.model import AdaptedModel
from training import RunError
from training.data import Batch


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """The rate of `step` (from 1): linear over the first `warmup` share of the steps, then a cosine to 0.

    The cosine is that of Loshchilov & Hutter 2017 (arXiv 1608.03983) without restarts.
    """
    warm = max(1, round(warmup * steps))
    if step <= warm:
        return peak * step / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def take_step(
    model: AdaptedModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch: Batch,
    micro: int,
    clip: float,
) -> tuple[float, float, int]:
    """One optimizer step over a batch in micro-batches of `micro` texts, with the loss per target token of the
    whole batch.

    Returns the loss, the gradient norm and the micro-batch, halved if memory ran out. A loss that isn't finite
    takes no step.
    """
    while True:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        try:
            for part in batch.cut(micro):
                loss, _ = model.loss(part.texts, part.features)
                loss = loss / batch.targets
                scaler.scale(loss).backward()
                total += loss.detach()
            break
        except torch.OutOfMemoryError as error:
            if micro == 1:
                raise RunError(
                    "one text alone doesn't fit in the GPU's memory; try --precision 4bit or a smaller --lm"
                ) from error
            micro = -(-micro // 2)
            print(f"\nout of memory: going on with micro-batches of {micro}", file=sys.stderr)
        torch.cuda.empty_cache()
    total = float(total)
    if not math.isfinite(total):
        optimizer.zero_grad(set_to_none=True)
        return total, math.nan, micro
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.adapter.parameters(), clip or math.inf)
    scaler.step(optimizer)
    scaler.update()
    return total, float(norm), micro
