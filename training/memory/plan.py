"""The memory that a training will need, by component, against what is free.

A forward pass on the meta device, where tensors have shapes but no storage, counts what the model saves for the
backward pass. That also works for a model that isn't downloaded, see `python -m periscope.training`.
"""

import copy
import inspect
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import use_gqa_in_sdpa

from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.lora import insert_lora, lora_parameters, lora_size
from periscope.adapters.lm.precision import trained_precision
from periscope.adapters.lm.prefix_cache import cache_argument, prefix_cache
from periscope.adapters.lm.selective_scan import use_selective_scan
from periscope.adapters.model import Adapter, PassShape
from periscope.device import free_memory, rules_of
from periscope.training.config import TrainConfig
from periscope.training.memory.model_sizes import skeleton
from periscope.units import format_bytes

MOMENTS_8BIT = 2 + 8 / 256  # bytes of a weight's two moments in 8 bits, with a scale for each 256
USABLE_SHARE = 0.8  # of the free memory; the rest is for one layer's working memory and fragmentation
CHECKPOINT_EVERY = (8, 4, 2, 1)  # tried in this order where not even one text fits
# bitsandbytes' 4-bit format: weights that share a scale, and scales that share a scale of their own.
WEIGHTS_PER_SCALE, SCALES_PER_SCALE = 64, 256
GIB = 1 << 30


@dataclass(frozen=True)
class Tuning:
    """How weights are trained. lm: the language model's own as well · mixed: fp32 weights of it, computed in bf16."""

    optimizer: str = "adamw"
    lm: bool = False
    mixed: bool = False

    def moments(self, itemsize: int) -> float:
        """Bytes of a weight's two moments, of a weight of so many bytes."""
        return 2 * itemsize if self.optimizer == "adamw" else MOMENTS_8BIT

    def beside(self, itemsize: int) -> float:
        """Bytes per weight of the language model besides its own: a gradient, moments, a copy to compute with."""
        return itemsize + self.moments(itemsize) + (2 if self.mixed else 0)


FROZEN = Tuning()


def tuning_of(config: TrainConfig, device: str) -> Tuning:
    """What a configuration trains on a device, by its kind."""
    compute = trained_precision(config.model.precision, torch.device(device))[1] if config.tune.train_lm else None
    optimizer = config.optim.optimizer if rules_of(device).small_moments else "adamw"
    return Tuning(optimizer, config.tune.train_lm, compute is not None)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each component.

    weights: the language model · adapter: what is trained, LoRA included, with gradients and AdamW's moments, and those
    of the language model where it is trained itself · per_token, per_target, per_medium: saved for the backward pass ·
    checkpoint: on disk · tokens: of a medium · free: GPU memory besides the weights, None on a CPU · lora, tuned: the
    parts of `adapter` that are LoRA's and the language model's · prefix: words that every text begins with and that are
    computed once · per_cached: what a row keeps of each of them, its key and value in every layer.
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
    prefix: int = 0
    tuned: int = 0
    per_cached: int = 0

    def per_text(self, length: int) -> int:
        """Bytes that one text of `length` tokens needs in a row of its own, if all but its medium's and the prefix are
        targets.
        """
        rest = length - self.prefix
        return self.kept(PassShape(1, rest, self.prefix, max(0, rest - self.tokens), 1))

    def kept(self, shape: PassShape) -> int:
        """Bytes that a forward pass of this shape keeps for its backward pass."""
        positions = self.per_token * (shape.positions + shape.words) + self.per_cached * shape.rows * shape.before
        return positions + self.per_target * shape.targets + self.per_medium * shape.media

    def texts_at_once(self, batch: int, passes: Callable[[int], Sequence[PassShape]]) -> int:
        """How many texts fit in a forward pass, at most `batch`; `passes(n)` are the largest passes of n texts. The
        whole batch on a CPU.
        """
        if self.free is None:
            return batch
        room = USABLE_SHARE * (self.free - self.adapter)
        return bisect(range(2, batch + 1), False, key=lambda n: any(self.kept(shape) > room for shape in passes(n))) + 1

    def total(self, texts: int, length: int) -> int:
        """Bytes with so many texts of `length` tokens in a forward pass."""
        return self.weights + self.adapter + texts * self.per_text(length)

    def micro_batch(self, batch: int, longest: int) -> int:
        """How many texts of `longest` tokens fit in a forward pass: the whole batch on a CPU."""
        return max(1, min(batch, int(self._capacity(longest)))) if self.free is not None else batch

    def fits(self, longest: int) -> bool:
        """Whether one text of `longest` tokens fits."""
        return self.free is None or self._capacity(longest) >= 1

    def _capacity(self, longest: int) -> float:
        assert self.free is not None
        return USABLE_SHARE * (self.free - self.adapter) / self.per_text(longest)

    def __str__(self) -> str:
        free = "" if self.free is None else f"; {format_bytes(self.free)} of the GPU are free"
        lora = f" and LoRA {format_bytes(self.lora)}" if self.lora else ""
        state = f"its gradients and AdamW {format_bytes(self.tuned)}" if self.tuned else "frozen"
        return (
            f"memory: language model {format_bytes(self.weights)} ({state}), adapter with AdamW "
            f"{format_bytes(self.adapter - self.lora - self.tuned)}{lora}; in a micro-batch "
            f"{format_bytes(self.per_token)} per token, {format_bytes(self.per_target)} more per target and "
            f"{format_bytes(self.per_medium)} per medium{free}; a checkpoint is {format_bytes(self.checkpoint)}"
        )


def plan(
    lm: LanguageModel,
    adapter: Adapter,
    longest: int,
    checkpoint_every: int = 0,
    shared: bool = True,
    prefix: int = 0,
    tuning: Tuning = FROZEN,
) -> MemoryPlan:
    """The plan of a loaded model for texts of up to `longest` tokens.

    checkpoint_every: every Nth layer is recomputed in the backward pass (0: none) · shared: some texts are about the
    same media, so that attention needs a mask · prefix: words that every text begins with and that are computed once.
    """
    free = free_memory(lm.device)
    lora = {id(parameter) for parameter in lora_parameters(lm.model).values()}
    weights = sum(p.numel() * p.element_size() for p in lm.model.parameters() if id(p) not in lora)
    rank = lm.lora.r if lm.lora else 0
    dtype = torch.bfloat16 if tuning.mixed else lm.dtype
    return plan_of(
        lm.model.config, dtype, weights, adapter, longest, free, checkpoint_every, rank, shared, prefix, tuning
    )


def plan_of(
    config: PretrainedConfig,
    dtype: torch.dtype,
    weights: int,
    adapter: Adapter,
    longest: int,
    free: int | None,
    checkpoint_every: int = 0,
    rank: int = 0,
    shared: bool = True,
    prefix: int = 0,
    tuning: Tuning = FROZEN,
) -> MemoryPlan:
    """The plan of a language model that needn't be loaded.

    dtype: of its activations · weights: bytes · adapter: may be on the meta device · free: bytes of GPU memory besides
    the weights, None on a CPU · rank: of LoRA (0: none) · checkpoint_every, shared, prefix: as in
    `plan`.
    """
    lora = lora_size(skeleton(config), rank) if rank else 0
    trained = sum(parameter.numel() for parameter in adapter.parameters()) + lora
    own = sum(parameter.numel() for parameter in skeleton(config).parameters()) if tuning.lm else 0
    itemsize, moments = (4 if tuning.mixed else dtype.itemsize), tuning.moments(4)
    tuned = round(own * tuning.beside(itemsize))
    form = RowForm(checkpoint_every, rank, shared or adapter.injects, prefix, tuning.lm)
    saved, cached = saved_in_row(config, dtype, longest, form)
    # Logits, overwritten by their gradient (adapters.lm.cross_entropy), and a copy where a family scales or caps them.
    per_logit = 2 * dtype.itemsize
    return MemoryPlan(
        weights=weights,
        adapter=round(trained * (8 + moments)) + tuned,  # fp32 weights and gradients
        per_token=saved,
        per_target=config.get_text_config().vocab_size * per_logit,
        per_medium=saved_per_medium(adapter),
        checkpoint=round(trained * (4 + moments) + own * (itemsize + tuning.moments(itemsize))),
        tokens=adapter.tokens,
        free=free,
        lora=round(lora * (8 + moments)),
        prefix=prefix,
        tuned=tuned,
        per_cached=cached,
    )


def choose_checkpointing(
    plan_with: Callable[[int], MemoryPlan], checkpoint_every: int, longest: int
) -> tuple[MemoryPlan, int]:
    """The memory plan and every how many layers one is recomputed: as asked, or where that is 0 and not even one text
    of `longest` tokens would fit, as few layers as make room for one. `plan_with(n)`: the plan with every nth layer.
    """
    memory = plan_with(checkpoint_every)
    for every in () if checkpoint_every else CHECKPOINT_EVERY:
        if memory.fits(longest):
            break
        memory, checkpoint_every = plan_with(every), every
        if memory.fits(longest) or every == 1:
            print(f"memory: to fit one text, layers are recomputed (--gradient-checkpointing {every})")
    return memory, checkpoint_every


def combine_plans(plans: Sequence[MemoryPlan]) -> MemoryPlan:
    """The plan of several adapters on one language model: all are in memory, and a text needs as much as the adapter
    that saves most.
    """
    return replace(
        plans[0],
        adapter=sum(plan.adapter for plan in plans),
        checkpoint=sum(plan.checkpoint for plan in plans),
        per_medium=max(plan.per_medium for plan in plans),
        tokens=min(plan.tokens for plan in plans),
        prefix=min(plan.prefix for plan in plans),
    )


def weight_bytes(model: PreTrainedModel, precision: str, keep: Iterable[str] = ("lm_head",), rest: int = 2) -> int:
    """Bytes of a model's weights in "fp32", "fp16", "bf16", "8bit" or "4bit"; it may be on the meta device.

    As bitsandbytes stores linear layers: 8 bits per weight and a 4-byte scale per row, or 4 bits per weight, a byte of
    scale per 64 weights and a 4-byte scale per 256 of these. All else, and linear layers with a part of their name in
    `keep`, takes `rest` bytes per number.
    """
    itemsize = {"fp32": 4, "fp16": 2, "bf16": 2}.get(precision)
    total = sum(parameter.numel() for parameter in model.parameters()) * (itemsize or rest)
    if itemsize:
        return total
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not set(name.split(".")) & set(keep):
            count = module.weight.numel()
            scales = -(-count // WEIGHTS_PER_SCALE)
            if precision == "8bit":
                packed = count + 4 * module.out_features
            else:
                packed = -(-count // 2) + scales + 4 * -(-scales // SCALES_PER_SCALE)
            total += packed - count * rest
    return total


@dataclass(frozen=True)
class RowForm:
    """How a row of texts passes through a language model.

    checkpoint_every: every Nth layer is recomputed in the backward pass (0: none) · rank: of LoRA (0: none) · masked:
    texts share the row, so that attention needs a mask · prefix: tokens at its beginning that are cached · trained: the
    model's own weights are.
    """

    checkpoint_every: int = 0
    rank: int = 0
    masked: bool = True
    prefix: int = 0
    trained: bool = False


PLAIN = RowForm()


def saved_in_row(config: PretrainedConfig, dtype: torch.dtype, length: int, form: RowForm) -> tuple[int, int]:
    """Bytes that a row of `length` tokens keeps of each of its own, and of each of its cached prefix: what is left of
    the shortest rows when their own tokens are taken away.
    """
    prefix = form.prefix

    def row(rest: int) -> int:
        return (prefix + rest) * saved_per_token(config, dtype, prefix + rest, form)

    cached = max(0, 2 * row(2) - row(4)) if prefix else 0
    own = row(length - prefix) - cached
    return round(own / max(1, length - prefix)), round(cached / max(1, prefix))


def saved_per_token(config: PretrainedConfig, dtype: torch.dtype, length: int, form: RowForm = PLAIN) -> int:
    """Bytes per token that a language model saves for the backward pass of a row of `length` tokens.

    Per token, because a mask and unfused attention grow with the length. With LoRA also the fp32 inputs of its layers
    and the outputs of their first matrices; of a model that is trained, the inputs of its own. Two small stacks of
    layers are counted, which gives one layer's share. Where layers are recomputed, each saves its input only, and one
    layer at a time everything. Of a cached prefix each layer saves keys and values; it is a mean over these tokens too.
    """
    text_config, every = config.get_text_config(), form.checkpoint_every
    depth = text_config.num_hidden_layers
    own = 1 - form.prefix / length
    small = min(2, depth) if any(len(set(values)) > 1 for values in _per_layer_lists(config).values()) else 1
    try:
        base, double = (
            _saved_bytes(_with_layers(config, layers), dtype, length, form) for layers in (small, 2 * small)
        )
    except Exception:  # a family whose forward pass looks at values can't run without them
        return round(_estimate(config, dtype, form.rank, form.trained) * own)
    layer = (double - base) / small / length
    recomputed = depth // every if every else 0
    layer_input = text_config.hidden_size * dtype.itemsize * own
    saved = base / length + (depth - small) * layer - recomputed * (layer - layer_input) + (layer if recomputed else 0)
    return round(saved)


def _with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """A copy of a config with another number of layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name, values in _per_layer_lists(config).items():
        setattr(text, name, (values * layers)[:layers])
    text.num_hidden_layers = layers
    return config


def _per_layer_lists(config: PretrainedConfig) -> dict[str, list]:
    """A config's lists with one entry per layer, such as the kind of attention."""
    text = config.get_text_config()
    return {
        name: value
        for name, value in vars(text).items()
        if isinstance(value, list) and len(value) == text.num_hidden_layers and name != "architectures"
    }


def _saved_bytes(config: PretrainedConfig, dtype: torch.dtype, length: int, form: RowForm) -> int:
    """Bytes that the whole model saves for one row of `length` tokens."""
    model, prefix = skeleton(config, dtype), form.prefix
    use_selective_scan(model)
    model.requires_grad_(form.trained)
    if form.rank:
        with torch.device("meta"):
            insert_lora(model, form.rank, form.rank)
    if model.config._attn_implementation == "sdpa":
        without_own_mask = "counted_behind_prefix" if prefix else "counted_causal"
        model.set_attn_implementation("counted" if form.masked else without_own_mask)
    width, rest = embedding_width(model), length - prefix
    embeds = torch.zeros(1, length, width, dtype=dtype, device="meta")
    inputs: dict[str, Any] = {"inputs_embeds": embeds[:, prefix:].clone().requires_grad_()}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = torch.arange(prefix, length, device="meta")[None]
        inputs["attention_mask"] = torch.zeros(1, 1, rest, length, dtype=dtype, device="meta")
    if prefix:
        with torch.no_grad():
            inputs[cache_argument(model)] = prefix_cache(model, embeds[:, :prefix])
    own = [*model.parameters(), *model.buffers()]
    return saved_bytes(lambda: model(**inputs, use_cache=False, logits_to_keep=1), own)


def embedding_width(model: PreTrainedModel) -> int:
    """The width of a model's word embeddings."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[1]


def saved_per_medium(adapter: Adapter) -> int:
    """Bytes that the projector saves for the backward pass, and those of its output, for one medium."""
    shape = adapter.features
    size = (1, shape.width) if shape.kind == "pooled" else (1, shape.tokens, shape.width)
    weights = {name: torch.empty_like(value, device="meta") for name, value in adapter.named_parameters()}
    weights = {name: value.requires_grad_() for name, value in weights.items()}
    features = torch.empty(size, device="meta")
    outputs: list[torch.Tensor] = []
    saved = saved_bytes(lambda: outputs.append(functional_call(adapter, weights, (features,))), weights.values())
    return saved + outputs[0].numel() * outputs[0].element_size()


def saved_bytes(forward: Callable[[], object], own: Iterable[torch.Tensor]) -> int:
    """Bytes that `forward` saves for its backward pass, each storage once, without the storages of `own`."""
    own_storages = {tensor.untyped_storage()._cdata for tensor in own}
    saved: dict[int, torch.UntypedStorage] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own_storages:
            saved[storage._cdata] = storage  # keeps it alive, so that its address isn't reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in saved.values())


class _Attention(torch.autograd.Function):
    """Attention without arithmetic. Like the fused kernels, it saves queries, keys, values, the output, one number per
    row, and the mask if there is one.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask):
        out = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
        row = torch.empty(query.shape[:-1], device=query.device)
        ctx.save_for_backward(query, key, value, out, row, *([] if mask is None else [mask]))
        return out

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("it only counts memory")


def _counted(module: nn.Module, query, key, value, attention_mask, **_) -> tuple[torch.Tensor, None]:
    """`(batch, heads, tokens, width)` to `(batch, tokens, heads, width)`, as transformers' attention functions.

    With a mask, its sdpa repeats keys and values for every head.
    """
    return _attend(query, *_for_each_head(query, key, value, attention_mask), attention_mask)


def _counted_behind_prefix(module: nn.Module, query, key, value, attention_mask, **_) -> tuple[torch.Tensor, None]:
    """Like `_counted`, but one mask serves all rows of a batch, so that it isn't any text's."""
    return _attend(query, *_for_each_head(query, key, value, attention_mask), None)


def _counted_causal(module: nn.Module, query, key, value, attention_mask, **_) -> tuple[torch.Tensor, None]:
    """Like `_counted`, ignoring the mask. It is passed anyway: without one, models look at the values of positions."""
    return _counted(module, query, key, value, None)


def _for_each_head(query, key, value, mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as transformers gives them to sdpa."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not use_gqa_in_sdpa(mask, key, value):
        return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return key, value


def _attend(query, key, value, mask) -> tuple[torch.Tensor, None]:
    return _Attention.apply(query, key, value, mask).transpose(1, 2).contiguous(), None


AttentionInterface.register("counted", _counted)
AttentionInterface.register("counted_behind_prefix", _counted_behind_prefix)
AttentionInterface.register("counted_causal", _counted_causal)


def _estimate(config: PretrainedConfig, dtype: torch.dtype, rank: int = 0, trained: bool = False) -> int:
    """About 16 vectors of the hidden width and 6 of the intermediate width per token and layer: Korthikanti et al. 2022
    (arXiv 2205.05198, equation 2) without what only weight gradients need; with LoRA those too, in fp32, and where the
    weights are trained.
    """
    config = config.get_text_config()
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * width
    lora = 4 * (6 * width + inner + 7 * rank) if rank else 0
    inputs = dtype.itemsize * (6 * width + inner) if trained else 0
    return config.num_hidden_layers * ((16 * width + 6 * inner) * dtype.itemsize // 2 + lora + inputs)
