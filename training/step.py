"""One optimizer step: the learning rates, the loss over micro-batches, the gradient."""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn

from periscope.adapters.model import AdaptedModel
from periscope.device import empty_cache, out_of_memory, rules_of
from periscope.errors import RunError
from periscope.training.config import TrainConfig
from periscope.training.data.dataset import Batch
from periscope.training.distributed import ALONE, Ranks

BESIDE_ADAPTER = ("lora", "lm")  # what is trained of the language model
# Share of the peak rate above the final one, after a share `t` of the steps that follow the warm-up.
DECAY: dict[str, Callable[[float], float]] = {
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),  # Loshchilov & Hutter 2017, arXiv 1608.03983, no restarts
    "linear": lambda t: 1 - t,
    "constant": lambda t: 1.0,
}


def learning_rate(
    step: int, steps: int, peak: float, warmup: float, schedule: str = "cosine", min_rate: float = 0.0
) -> float:
    """The learning rate of `step` (from 1): linear warm-up over the first `warmup` share of the steps, then along
    `schedule` (a key of `DECAY`) to `min_rate`.
    """
    warmup_steps = max(1, round(warmup * steps))
    if step <= warmup_steps:
        return peak * step / warmup_steps
    return min_rate + (peak - min_rate) * DECAY[schedule]((step - warmup_steps) / max(1, steps - warmup_steps))


def make_optimizer(trained: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over what is trained (`AdaptedModel.trained`), on an NVIDIA GPU in the form that `optimizer` names.

    Matrices have `weight_decay`; biases, norms and the learned scale have none. Parameter groups are named "projector",
    "lora" or "lm", and "soft prompt" where that has a learning rate of its own. 8-bit moments: Dettmers et al. 2022,
    arXiv 2110.02861.
    """
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        group = next((part for part in BESIDE_ADAPTER if name.startswith(f"{part}.")), "projector")
        if config.optim.soft_prompt_lr and "soft_prompt" in name.split("."):
            group = "soft prompt"
        decay = config.optim.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((group, decay), []).append(parameter)
    named = [{"params": members, "name": name, "weight_decay": decay} for (name, decay), members in groups.items()]
    rules = [rules_of(parameter.device) for parameter in trained.values()]
    if config.optim.optimizer != "adamw" and all(device.small_moments for device in rules):
        import bitsandbytes  # takes a second

        paged = config.optim.optimizer == "paged-adamw8bit"
        in_8_bits = bitsandbytes.optim.PagedAdamW8bit if paged else bitsandbytes.optim.AdamW8bit
        return cast(torch.optim.Optimizer, in_8_bits(named, lr=config.lr))
    fused = all(device.fused for device in rules) or None
    return torch.optim.AdamW(named, lr=config.lr, fused=fused)  # one kernel for all, where it is well tested


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps: int, config: TrainConfig) -> float:
    """Set each group's learning rate at `step` of `steps`; return the projector's.

    A soft prompt's own rate is constant, as in eP-ALM (https://github.com/mshukor/eP-ALM). LoRA's and the language
    model's follow the projector's schedule, down to the same share of their peaks. For the first `freeze_projector`
    steps only these have gradients, so the other parameters count neither in the gradient norm nor in AdamW's moments.
    """
    optim = config.optim

    def scheduled(peak: float, min_rate: float) -> float:
        return learning_rate(step, steps, peak, optim.warmup, optim.schedule, min_rate)

    rate, min_share = scheduled(config.lr, optim.min_lr), optim.min_lr / (config.lr or 1)
    rates = {
        "projector": rate,
        "soft prompt": optim.soft_prompt_lr,
        "lora": scheduled(config.lora.lora_lr, min_share * config.lora.lora_lr),
        "lm": scheduled(config.tune.lm_lr, min_share * config.tune.lm_lr),
    }
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
        for parameter in group["params"]:
            parameter.requires_grad_(group["name"] in BESIDE_ADAPTER or step > config.lora.freeze_projector)
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
    """Take one optimizer step over a batch, accumulating the gradient over micro-batches of `micro` texts.

    The loss is per target token of the whole step (or per text, as the model's `loss_mean` says), of which the batch
    may be one of several `ranks`' share. `clip`: maximum gradient norm (0: off).

    Returns the loss in nats, the gradient norm before clipping, and the micro-batch, halved if memory ran out on any
    rank. No step is taken when the loss isn't finite. Raises RunError when not even one text fits in memory.
    """
    trained = list(model.trained().values())
    while True:
        optimizer.zero_grad(set_to_none=True)
        loss, ran_out = _accumulate(model, scaler, batch, micro)
        total, failed, *has_gradient = ranks.sum(loss, ran_out, *(p.grad is not None for p in trained))
        if not failed:
            break
        micro = _halve(min(micro, int(ranks.all_max(len(batch)))), model.lm.device)
    if not math.isfinite(total):
        optimizer.zero_grad(set_to_none=True)
        return total, math.nan, micro
    ranks.sum_gradients(p for p, on_some_rank in zip(trained, has_gradient, strict=True) if on_some_rank)
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(trained, clip or math.inf)
    scaler.step(optimizer)
    scaler.update()
    return total, float(norm), micro


def _accumulate(model: AdaptedModel, scaler: torch.amp.GradScaler, batch: Batch, micro: int) -> tuple[float, bool]:
    """Add up the gradient over the micro-batches; the loss, and whether memory ran out on the way."""
    total = torch.zeros((), device=model.lm.device)
    try:
        for micro_batch in batch.cut(micro):
            loss, _ = model.loss(micro_batch.texts, micro_batch.features_on(model.lm.device), micro_batch.draw)
            loss = loss / batch.count(model.loss_mean)
            scaler.scale(loss).backward()
            total = total + loss.detach()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return 0.0, True
    return float(total), False


def _halve(micro: int, device: torch.device) -> int:
    if micro == 1 and not rules_of(device).quantizes:
        raise RunError("one text alone doesn't fit in the memory of Apple's GPU; try a smaller --lm, or --device cpu")
    if micro == 1:
        raise RunError("one text alone doesn't fit in the GPU's memory; try --precision 4bit or a smaller --lm")
    micro = -(-micro // 2)
    print(f"\nout of memory: going on with micro-batches of {micro}", file=sys.stderr)
    empty_cache(device)
    return micro


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimizer's tensors on the CPU under flat names, `optimizer.<parameter>.<field>`, for safetensors."""
    tensors = {}
    for i, fields in optimizer.state_dict()["state"].items():
        nested = [value for value in fields.values() if isinstance(value, dict)]  # bitsandbytes hides its own from FSDP
        for field, value in {**fields, **(nested[0] if nested else {})}.items():
            if not isinstance(value, dict):
                tensor = torch.as_tensor(value).detach().contiguous()
                tensors[f"optimizer.{i}.{field}"] = tensor.to("cpu", copy=True)
    return tensors


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Load what `optimizer_state` returned."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        prefix, _, rest = name.partition(".")
        if prefix == "optimizer":
            i, _, field = rest.partition(".")
            state.setdefault(int(i), {})[field] = value
    quantized: Any = optimizer if hasattr(optimizer, "is_paged") else None
    if quantized:  # bitsandbytes counts steps in whole numbers
        for fields in state.values():
            fields["step"] = int(fields["step"])  # type: ignore[assignment]
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if quantized and quantized.is_paged:
        for parameter, fields in optimizer.state.items():
            for field in {"state1", "state2"} & fields.keys():
                fields[field] = quantized.get_state_buffer(parameter, dtype=fields[field].dtype).copy_(fields[field])
