"""What a training will need, said before it starts: memory by part, against what is free.

Counted, not guessed: a forward pass on the meta device, where tensors have shapes and no memory, says what the frozen
model keeps for the backward pass. So it can be known for a model that isn't here, see `python -m training`.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.func import functional_call
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import use_gqa_in_sdpa

from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.lora import insert_lora, lora_parameters, lora_size
from periscope.adapters.lm.selective_scan import use_selective_scan
from periscope.adapters.model import Adapter
from periscope.training.memory.model_sizes import skeleton

ADAM_BYTES = 16  # an fp32 weight, its gradient and Adam's two moments
SHARE = 0.8  # of the free memory to plan with: one layer's working memory and the allocator's gaps take the rest
FEWER = (8, 4, 2, 1)  # each so many-th layer keeps its input alone, where nothing would fit else
BLOCK, BLOCKS = 64, 256  # bitsandbytes' 4 bits: weights with one scale, scales with one of their own
GIB = 1 << 30


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part: the frozen `weights`; what is trained, the `adapter`, with its gradient and AdamW's moments, and
    how much of that is LoRA's; what a backward pass needs for each token of a text, each target and each medium; a
    `checkpoint`; what is `free` beside the weights, None on a CPU. `tokens` of a text are its medium's.
    """

    weights: int
    adapter: int
    per_token: int
    per_target: int
    per_medium: int
    checkpoint: int
    tokens: int
    free: int | None
    lora: int = 0

    def per_text(self, length: int) -> int:
        """Bytes of one text of `length` tokens, if all but its medium's are targets."""
        return self.per_token * length + self.per_target * max(0, length - self.tokens) + self.per_medium

    def micro_batch(self, batch: int, longest: int) -> int:
        """How many texts of `longest` tokens fit at once: all of them on a CPU, what the free memory holds on a GPU."""
        if self.free is None:
            return batch
        return max(1, min(batch, int(self._room(longest))))

    def fits(self, longest: int) -> bool:
        """Whether one text of `longest` tokens does."""
        return self.free is None or self._room(longest) >= 1

    def _room(self, longest: int) -> float:
        return SHARE * (self.free - self.adapter) / self.per_text(longest)

    def __str__(self) -> str:
        free = "" if self.free is None else f"; {self.free / GIB:.1f} GiB of the GPU are free"
        lora = f" and LoRA {size(self.lora)}" if self.lora else ""
        parts = f"adapter with AdamW {size(self.adapter - self.lora)}{lora}"
        return (
            f"memory: language model {size(self.weights)} (frozen), {parts}; in a "
            f"micro-batch {size(self.per_token)} per token, {size(self.per_target)} more per target and "
            f"{size(self.per_medium)} per medium{free}; a checkpoint is {size(self.checkpoint)}"
        )


def plan(lm: LanguageModel, adapter: Adapter, longest: int, rerun: int = 0, shared: bool = True) -> MemoryPlan:
    """The plan of a loaded model for texts of up to `longest` tokens, each `rerun`-th layer computed again; `shared`
    when some are about the same media, so that they need a mask.
    """
    config = lm.model.config
    free = torch.cuda.mem_get_info(lm.device)[0] if lm.device.type == "cuda" else None
    maps = {id(parameter) for parameter in lora_parameters(lm.model).values()}
    weights = sum(p.numel() * p.element_size() for p in lm.model.parameters() if id(p) not in maps)
    rank = lm.lora.r if lm.lora else 0
    return plan_of(config, lm.dtype, weights, adapter, longest, free, rerun, rank, shared)


def plan_of(
    config: PretrainedConfig,
    dtype: torch.dtype,
    weights: int,
    adapter: Adapter,
    longest: int,
    free: int | None,
    rerun: int = 0,
    rank: int = 0,
    shared: bool = True,
) -> MemoryPlan:
    """The plan of a language model of this configuration whose arithmetic is in `dtype` and whose `weights` take so
    many bytes, with a LoRA of this `rank` (0: none); the adapter may be on the meta device. `shared`: as in `plan`.
    """
    maps = lora_size(skeleton(config), rank) if rank else 0
    trained = sum(parameter.numel() for parameter in adapter.parameters()) + maps
    # logits, whose gradient takes their place (adapters.cross_entropy), and what a family's scale or cap makes of them
    per_logit = 2 * dtype.itemsize
    return MemoryPlan(
        weights=weights,
        adapter=trained * ADAM_BYTES,
        per_token=kept_per_token(config, dtype, longest, rerun, rank, shared or adapter.injects),
        per_target=config.get_text_config().vocab_size * per_logit,
        per_medium=kept_per_medium(adapter),
        checkpoint=trained * 12,
        tokens=adapter.tokens,
        free=free,
        lora=maps * ADAM_BYTES,
    )


def spare_memory(plan_at: Callable[[int], MemoryPlan], rerun: int, longest: int) -> tuple[MemoryPlan, int]:
    """The plan, and how many layers are computed again: each `rerun`-th as was asked for, or where that is 0 and not
    one text of `longest` tokens would fit, as few as let one. `plan_at(n)` is the plan with each n-th.
    """
    needs = plan_at(rerun)
    for every in () if rerun else FEWER:
        if needs.fits(longest):
            break
        needs, rerun = plan_at(every), every
        if needs.fits(longest) or every == 1:
            print(f"memory: to fit one text, layers are recomputed (--gradient-checkpointing {every})")
    return needs, rerun


def together(plans: Sequence[MemoryPlan]) -> MemoryPlan:
    """The plan of several adapters on one language model: all are held, and a text is of the one that keeps most."""
    adapter, checkpoint = (sum(getattr(plan, name) for plan in plans) for name in ("adapter", "checkpoint"))
    per_medium, tokens = max(plan.per_medium for plan in plans), min(plan.tokens for plan in plans)
    return replace(plans[0], adapter=adapter, checkpoint=checkpoint, per_medium=per_medium, tokens=tokens)


def weight_bytes(model: PreTrainedModel, precision: str, keep: Iterable[str] = ("lm_head",), rest: int = 2) -> int:
    """What the weights of a model (it may be on the meta device) take in "fp32", "fp16", "bf16", "8bit" or "4bit".

    As bitsandbytes holds them: a byte a weight of each linear map and a 4-byte scale a row, or half a byte and scales
    for blocks of 64 that are themselves 8-bit in blocks of 256. All else, and linear maps whose name has a part in
    `keep`, take `rest` bytes a number.
    """
    whole = {"fp32": 4, "fp16": 2, "bf16": 2}.get(precision)
    total = sum(parameter.numel() for parameter in model.parameters()) * (whole or rest)
    if whole:
        return total
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not set(name.split(".")) & set(keep):
            count = module.weight.numel()
            blocks = -(-count // BLOCK)
            packed = count + 4 * module.out_features if precision == "8bit" else (
                -(-count // 2) + blocks + 4 * -(-blocks // BLOCKS)
            )  # fmt: skip
            total += packed - count * rest
    return total


def kept_per_token(
    config: PretrainedConfig, dtype: torch.dtype, length: int, rerun: int = 0, rank: int = 0, masked: bool = True
) -> int:
    """Bytes that a frozen language model keeps for the backward pass for each token of a text of `length` (a mask, and
    attention that isn't fused, grow with it). With a LoRA of this `rank` also what goes into each of its layers, in
    fp32, and out of its first map.

    Counted for two small stacks of its layers, which gives a layer's share. Where each `rerun`-th layer is computed
    again, it keeps its input, and one layer at a time all.
    """
    depth = config.get_text_config().num_hidden_layers
    few = min(2, depth) if any(len(set(value)) > 1 for value in _by_layer(config).values()) else 1
    try:
        less, more = (_kept(_with_layers(config, layers), dtype, length, rank, masked) for layers in (few, 2 * few))
    except Exception:  # a family that looks at values on its way can't be counted without any
        return _estimate(config, dtype, rank)
    layer = (more - less) / few / length
    chosen = depth // rerun if rerun else 0
    entered = config.get_text_config().hidden_size * dtype.itemsize
    kept = less / length + (depth - few) * layer - chosen * (layer - entered) + (layer if chosen else 0)
    return round(kept)


def _with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """A copy of a config for a model with fewer or more layers, lists of one thing a layer included."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name, value in _by_layer(config).items():
        setattr(text, name, (value * layers)[:layers])
    text.num_hidden_layers = layers
    return config


def _by_layer(config: PretrainedConfig) -> dict[str, list]:
    """A config's lists of one thing a layer, such as which attention it has."""
    text = config.get_text_config()
    return {
        name: value
        for name, value in vars(text).items()
        if isinstance(value, list) and len(value) == text.num_hidden_layers and name != "architectures"
    }


def _kept(config: PretrainedConfig, dtype: torch.dtype, length: int, rank: int, masked: bool) -> int:
    """Bytes that the whole model keeps for one text of `length`."""
    model = skeleton(config, dtype)
    use_selective_scan(model)
    if rank:
        with torch.device("meta"):
            insert_lora(model, rank, rank)
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("counted" if masked else "counted_causal")
    width = model.get_input_embeddings().weight.shape[1]
    given = {"inputs_embeds": torch.zeros(1, length, width, dtype=dtype, device="meta", requires_grad=True)}
    if "position_ids" in inspect.signature(model.forward).parameters:
        given["position_ids"] = torch.arange(length, device="meta")[None]
        given["attention_mask"] = torch.zeros(1, 1, length, length, dtype=dtype, device="meta")
    own = [*model.parameters(), *model.buffers()]
    return kept_bytes(lambda: model(**given, use_cache=False, logits_to_keep=1), own)


def kept_per_medium(adapter: Adapter) -> int:
    """Bytes that the projector keeps for the backward pass, and what it gives, for one medium."""
    shape = adapter.features
    size = (1, shape.width) if shape.kind == "pooled" else (1, shape.tokens, shape.width)
    weights = {name: torch.empty_like(value, device="meta") for name, value in adapter.named_parameters()}
    weights = {name: value.requires_grad_() for name, value in weights.items()}
    features = torch.empty(size, device="meta")
    given: list[torch.Tensor] = []
    kept = kept_bytes(lambda: given.append(functional_call(adapter, weights, (features,))), weights.values())
    return kept + given[0].numel() * given[0].element_size()


def kept_bytes(forward: Callable[[], object], own: Iterable[torch.Tensor]) -> int:
    """Bytes of what `forward` saves for its backward pass, each storage once, without those of `own`."""
    known = {tensor.untyped_storage()._cdata for tensor in own}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in kept.values())


class _Attention(torch.autograd.Function):
    """Attention's shapes: as the fused kernels, it keeps queries, keys, values, the outcome, a number a row, and the
    mask if there is one.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask):
        out = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
        row = torch.empty(query.shape[:-1], device=query.device)
        ctx.save_for_backward(query, key, value, out, row, *([] if mask is None else [mask]))
        return out

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("it has shapes only")


def _counted(module: nn.Module, query, key, value, attention_mask, **_) -> tuple[torch.Tensor, None]:
    """In transformers' form: `(batch, heads, length, width)` to `(batch, length, heads, width)`; with a mask, its sdpa
    repeats keys and values for every head.
    """
    times = query.shape[1] // key.shape[1]
    if times > 1 and not use_gqa_in_sdpa(attention_mask, key, value):
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    return _Attention.apply(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


def _counted_causal(module: nn.Module, query, key, value, attention_mask, **_) -> tuple[torch.Tensor, None]:
    """Without a mask. One is given all the same: where there is none, models look at the positions' values."""
    return _counted(module, query, key, value, None)


AttentionInterface.register("counted", _counted)
AttentionInterface.register("counted_causal", _counted_causal)


def _estimate(config: PretrainedConfig, dtype: torch.dtype, rank: int = 0) -> int:
    """Per token and layer about 16 vectors of the model's width and 6 of its inner width, the figure of Korthikanti et
    al. 2022 (arXiv 2205.05198, equation 2) without what only weight gradients need; with LoRA that too, in fp32.
    """
    config = config.get_text_config()
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * width
    lora = 4 * (6 * width + inner + 7 * rank) if rank else 0
    return config.num_hidden_layers * ((16 * width + 6 * inner) * dtype.itemsize // 2 + lora)


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
