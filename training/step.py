"""One optimizer step: the learning rates, the loss over micro-batches, the gradient."""

import math
import sys

import torch

from adapters.model import AdaptedModel, Adapter
from training import RunError
from training.data import Batch

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


def make_optimizer(adapter: Adapter, settings: dict) -> torch.optim.AdamW:
    """AdamW over what is trained, in groups: matrices have `weight_decay`, biases, norms and the gain none, and a soft
    prompt with a learning rate of its own is a group named so.
    """
    groups: dict[tuple, list] = {}
    for name, parameter in adapter.named_parameters():
        own = bool(settings["soft_prompt_lr"]) and name.startswith("soft_prompt.")
        decay = settings["weight_decay"] if parameter.ndim > 1 else 0.0
        groups.setdefault(("soft prompt" if own else "projector", decay), []).append(parameter)
    named = [{"params": found, "name": name, "weight_decay": decay} for (name, decay), found in groups.items()]
    return torch.optim.AdamW(named, lr=settings["lr"])


def set_rates(optimizer: torch.optim.Optimizer, step: int, settings: dict) -> float:
    """Give each group its learning rate at `step`; return that of the projector. A soft prompt's own is constant, as in
    eP-ALM (https://github.com/mshukor/eP-ALM).
    """
    names = ("steps", "lr", "warmup", "schedule", "min_lr")
    rate = learning_rate(step, *(settings[name] for name in names))
    for group in optimizer.param_groups:
        group["lr"] = settings["soft_prompt_lr"] if group["name"] == "soft prompt" else rate
    return rate


def take_step(
    model: AdaptedModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch: Batch,
    micro: int,
    clip: float,
) -> tuple[float, float, int]:
    """One optimizer step over a batch in micro-batches of `micro` texts, with the loss per target token (or per text,
    as the model's `loss_mean` says) of the whole batch.

    Returns the loss, the gradient norm and the micro-batch, halved if memory ran out. A loss that isn't finite
    takes no step.
    """
    while True:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        try:
            for part in batch.cut(micro):
                loss, _ = model.loss(part.texts, part.features)
                loss = loss / (len(batch) if model.loss_mean == "sample" else batch.targets)
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
    norm = torch.nn.utils.clip_grad_norm_(model.trained().values(), clip or math.inf)
    scaler.step(optimizer)
    scaler.update()
    return total, float(norm), micro
