"""What a training will need, said before it starts: memory by part, against what is free."""

from dataclasses import dataclass

import torch

from adapters.language_model import LanguageModel
from adapters.model import Adapter

ADAM_BYTES = 16  # an fp32 weight, its gradient and Adam's two moments
GIB = 1 << 30


@dataclass(frozen=True)
class Plan:
    """Bytes by part. `per_token` is a rough estimate of what the frozen model keeps per token for the backward pass."""

    weights: int
    adapter: int
    per_token: int
    checkpoint: int
    free: int | None

    def micro_batch(self, batch: int, longest: int) -> int:
        """How many texts of `longest` tokens fit at once: all of them on a CPU, what the free memory holds on a GPU."""
        if self.free is None:
            return batch
        room = 0.8 * (self.free - self.adapter) / (self.per_token * longest)
        return max(1, min(batch, int(room)))

    def __str__(self) -> str:
        free = "" if self.free is None else f"; {self.free / GIB:.1f} GiB of the GPU are free"
        return (
            f"memory: language model {_size(self.weights)} (frozen), adapter with AdamW {_size(self.adapter)}, "
            f"about {_size(self.per_token)} per token in a micro-batch{free}; a checkpoint is {_size(self.checkpoint)}"
        )


def plan(lm: LanguageModel, adapter: Adapter) -> Plan:
    """Count what lies in memory and estimate the rest.

    Per token and layer the backward pass keeps about 16 vectors of the model's width and 6 of its inner width, the
    figure of Korthikanti et al. 2022 (arXiv 2205.05198, equation 2) without what only weight gradients need.
    """
    config = lm.model.config.get_text_config()
    layers, width = config.num_hidden_layers, config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * width
    itemsize = lm.dtype.itemsize
    trained = sum(p.numel() for p in adapter.parameters())
    free = torch.cuda.mem_get_info(lm.device)[0] if lm.device.type == "cuda" else None
    return Plan(
        weights=sum(p.numel() * p.element_size() for p in lm.model.parameters()),
        adapter=trained * ADAM_BYTES,
        per_token=layers * (16 * width + 6 * inner) * itemsize // 2,
        checkpoint=trained * 12,
        free=free,
    )


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
