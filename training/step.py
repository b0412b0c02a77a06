"""One optimizer step: the learning rates, the loss over micro-batches, the gradient."""

import math
import sys
from collections.abc import Mapping

import torch
from torch import nn

from periscope.adapters.model import AdaptedModel
from periscope.errors import RunError
from periscope.training.config import TrainConfig
from periscope.training.data.dataset import Batch
from periscope.training.distributed import ALONE, Ranks

FALL = {  # the share of the way from the end's rate to the peak's, after a share `t` of the steps that follow warm-up
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),  # Loshchilov & Hutter 2017, arXiv 1608.03983, no restarts
    "linear": lambda t: 1 - t,
    "constant": lambda t: 1.0,
}


def learning_rate(
    step: int, steps: int, peak: float, warmup: float, schedule: str = "cosine", least: float = 0.0
) -> float:
    """The rate of `step` (from 1): linear over the first `warmup` share of the steps, then along `schedule` (a key of
    `FALL`) to `least`.
    """
    warm = max(1, round(warmup * steps))
    if step <= warm:
        return peak * step / warm
    return least + (peak - least) * FALL[schedule]((step - warm) / max(1, steps - warm))


def make_optimizer(trained: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over what is trained (`AdaptedModel.trained`), in groups: matrices have `weight_decay`, biases, norms and
    the gain none; a soft prompt with a learning rate of its own is a group named so, and so is a LoRA.
    """
    groups: dict[tuple, list] = {}
    for name, parameter in trained.items():
        part = "lora" if name.startswith("lora.") else "projector"
        if config.optim.soft_prompt_lr and "soft_prompt" in name.split("."):
            part = "soft prompt"
        decay = config.optim.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((part, decay), []).append(parameter)
    named = [{"params": found, "name": name, "weight_decay": decay} for (name, decay), found in groups.items()]
    fused = all(parameter.is_cuda for parameter in trained.values())  # one kernel for all, where it is well tried
    return torch.optim.AdamW(named, lr=config.lr, fused=fused or None)


def set_rates(optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> float:
    """Give each group its learning rate at `step`; return that of the projector. A soft prompt's own is constant, as in
    eP-ALM (https://github.com/mshukor/eP-ALM); a LoRA's goes the projector's way, to the same share of its peak.

    For the first `freeze_projector` steps all but the LoRA is left out of the gradient, and so of its norm and of
    AdamW's moments.
    """

    optim = config.optim

    def rate_of(peak: float, least: float) -> float:
        return learning_rate(step, config.steps, peak, optim.warmup, optim.schedule, least)

    rate, share = rate_of(config.lr, optim.min_lr), optim.min_lr / (config.lr or 1)
    own = {
        "soft prompt": optim.soft_prompt_lr,
        "lora": rate_of(config.lora.lora_lr, share * config.lora.lora_lr),
    }
    for group in optimizer.param_groups:
        group["lr"] = own.get(group["name"], rate)
        for parameter in group["params"]:
            parameter.requires_grad_(group["name"] == "lora" or step > config.lora.freeze_projector)
    return rate


def take_step(
    model: AdaptedModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch: Batch,
    micro: int,
    clip: float,
    ranks: Ranks = ALONE,
) -> tuple[float, float, int]:
    """One optimizer step over a batch in micro-batches of `micro` texts, with the loss per target token (or per text,
    as the model's `loss_mean` says) of the whole step, of which the batch may be this one of several `ranks`' share.

    Returns the loss, the gradient norm and the micro-batch, halved if memory ran out on any rank. A loss that isn't
    finite takes no step.
    """
    trained = list(model.trained().values())
    while True:
        optimizer.zero_grad(set_to_none=True)
        total, crowded = 0.0, False
        try:
            for part in batch.cut(micro):
                loss, _ = model.loss(part.texts, part.features, part.draw)
                loss = loss / batch.count(model.loss_mean)
                scaler.scale(loss).backward()
                total += loss.detach()
        except torch.OutOfMemoryError:
            crowded = True
        total, crowded, *held = ranks.sum(float(total), crowded, *(p.grad is not None for p in trained))
        if not crowded:
            break
        micro = min(micro, int(ranks.all_max(len(batch))))
        if micro == 1:
            raise RunError("one text alone doesn't fit in the GPU's memory; try --precision 4bit or a smaller --lm")
        micro = -(-micro // 2)
        print(f"\nout of memory: going on with micro-batches of {micro}", file=sys.stderr)
        torch.cuda.empty_cache()
    if not math.isfinite(total):
        optimizer.zero_grad(set_to_none=True)
        return total, math.nan, micro
    ranks.sum_gradients(p for p, some in zip(trained, held, strict=True) if some)
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(trained, clip or math.inf)
    scaler.step(optimizer)
    scaler.update()
    return total, float(norm), micro
