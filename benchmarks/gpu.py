"""What does one card do? Speed, memory, waiting, the gain of each lever, and recovery from running out of memory.

Random models in the shapes of Mistral-7B, Qwen3-4B and SmolLM2-135M, in four precisions, within 22 GiB (what a desktop
leaves of 24 GB) or what the card has. It ends after about eight minutes: cases that there is no time for are left out,
and what a card can't do is a row that says why.

    python -m benchmarks gpu --json card.json
"""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config
from transformers.utils import logging

from benchmarks import side_by_side
from benchmarks._meters import seconds
from benchmarks._synthetic import CONFIG, WORDS, adapted, caption_lengths, feature_set, steps_of
from benchmarks.memory import LIMIT, MISTRAL, random_batch, save_random
from benchmarks.prefix import PREFIXES, behind, prefixes
from benchmarks.utilisation import multiplications, whole_words
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.segments import Segment
from periscope.training.data.dataset import Batch
from periscope.training.data.steps import load_steps
from periscope.training.memory.plan import GIB, plan
from periscope.training.step import make_optimizer, take_step

QWEN3_4B = Qwen3Config(
    vocab_size=151_936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)
SMOLLM2 = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
MODELS: dict[str, PretrainedConfig] = {"SmolLM2-135M": SMOLLM2, "Mistral-7B": MISTRAL, "Qwen3-4B": QWEN3_4B}
PRECISIONS = ("bf16", "4bit", "fp16", "8bit")  # those first that a 24 GB card is used with
POOLED = FeatureShape("pooled", 1, 768)
ADAPTERS = {
    "mlp16": ("mlp16", POOLED),
    "mlp, 576 patches": ("mlp", FeatureShape("patches", 576, 1024, (24, 24))),
    "mlp, 729 patches": ("mlp", FeatureShape("patches", 729, 1152, (27, 27))),
}
BUDGET = 8 * 60  # seconds
STEPS = 3  # timed of each case, after one that isn't
MEDIA, LOADED = 2048, 24  # media, and steps, of which the share spent waiting is measured
CAPTIONS = 4  # of each medium, where passes are shared

Row = dict[str, float | str]
Context = Callable[[], AbstractContextManager]


@dataclass
class Clock:
    """How much of the time that all cases have together is left."""

    budget: float
    began: float

    @property
    def over(self) -> bool:
        return time.monotonic() - self.began > self.budget


def measure(rounds: int) -> dict[str, dict]:
    """`measure_on` the GPU, with its name in the first row; empty without one."""
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    share = min(1.0, LIMIT / properties.total_memory)
    torch.cuda.set_per_process_memory_fraction(share)
    size = {"ratio": share, "card": properties.name, "GiB": properties.total_memory / GIB, "torch": torch.__version__}
    try:
        return {"share of the card's memory that is used": size} | measure_on("cuda", MODELS, PRECISIONS, rounds)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measure_on(
    device: str, models: Mapping[str, PretrainedConfig], precisions: tuple[str, ...], rounds: int
) -> dict[str, dict]:
    """Rows by name; on a CPU without memory:

    - "ADAPTER on MODEL in PRECISION": ratio = share of the card's own rate of matrix products (four operations per
      parameter and token: forward, and backward to the inputs), "ms a step", "samples/s", "micro-batch", "peak/plan",
      "GiB".
    - "waiting for data, ...": ratio = share of the time.
    - "LEVER, on against off, ...": ratio of samples per second.
    - "out of memory, ...": ratio = the micro-batch after over that before.

    A row with "failed" has ratio nan.
    """
    found: dict[str, dict] = {}
    clock = Clock(BUDGET, time.monotonic())
    logging.disable_progress_bar()
    for name, config in models.items():
        with tempfile.TemporaryDirectory() as folder:
            found |= tried(f"the weights of {name}", partial(weights_row, config, device, Path(folder)))
            for precision in precisions:
                label = f"{name} in {precision}"
                if clock.over:
                    found[label] = failed("no time was left for it")
                    continue
                first = precision == precisions[0]
                found |= tried(label, partial(measure_model, folder, device, precision, name, clock, rounds, first))
                _free(device)
    return found


def tried(name: str, work: Callable[[], dict[str, dict]]) -> dict[str, dict]:
    """What `work` finds, or a row that says why it can't be done on this card."""
    try:
        return work()
    except Exception as error:  # whatever a card, its driver or a library can't do is a finding
        return {name: failed(f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")}


def failed(why: str) -> Row:
    """The row of what wasn't measured."""
    return {"ratio": float("nan"), "failed": why}


def weights_row(config: PretrainedConfig, device: str, folder: Path) -> dict[str, dict]:
    save_random(config, device, folder)
    return {}


def measure_model(
    folder: str, device: str, precision: str, name: str, clock: Clock, rounds: int, all_of_it: bool
) -> dict[str, dict]:
    """All that is measured of one model in one precision; the levers, too, if `all_of_it`."""
    found: dict[str, dict] = {}
    lm = load_language_model(folder, device, precision)
    rate = multiplications(device, lm.dtype)
    for adapter, (spec, shape) in ADAPTERS.items():
        label = f"{adapter} on {name} in {precision}"
        if clock.over:
            found[label] = failed("no time was left for it")
            continue
        model = adapted(lm, spec, shape)
        found |= tried(label, lambda model=model, label=label: {label: speed(model, rate)})  # type: ignore[misc]
        del model
        _free(device)
    if all_of_it and not clock.over:
        model = adapted(lm, *ADAPTERS["mlp16"])
        found |= tried(
            f"waiting for data, mlp16 on {name}", lambda: {f"waiting for data, mlp16 on {name}": waits(model)}
        )
        found |= levers(lm, name, rounds, clock)
        if device == "cuda":
            found |= tried(f"out of memory, {name}", lambda: {f"out of memory, {name}": recovers(model)})
    return found


def speed(model: AdaptedModel, rate: float) -> Row:
    """The steps of `random_batch` as train.py takes them: their rate, and their memory against the plan."""
    lm, on_gpu = model.lm, model.lm.device.type == "cuda"
    batch = random_batch(lm, model.adapter.features)
    longest = max(map(_length(model), batch.texts))
    free = LIMIT - torch.cuda.memory_reserved(lm.device) if on_gpu else None
    needs = replace(plan(lm, model.adapter, longest, shared=False), free=free)
    micro = needs.micro_batch(len(batch), longest)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(lm.device)
    took, micro = timed_steps(model, batch, micro)
    parameters = lm.model.num_parameters()
    tokens = sum(map(_length(model), batch.texts))
    row: Row = {"ratio": 4 * parameters * tokens / took / rate, "ms a step": 1000 * took}
    row |= {"samples/s": len(batch) / took, "micro-batch": micro}
    if on_gpu:
        peak = torch.cuda.max_memory_allocated(lm.device)
        row |= {"GiB": peak / GIB, "peak/plan": peak / needs.total(micro, longest)}
    return row


def trainer(model: AdaptedModel) -> tuple[torch.optim.Optimizer, torch.amp.GradScaler]:
    """A new optimizer of what is trained, and its scaler, as train.py has them."""
    scaler = torch.amp.GradScaler(model.lm.device.type, enabled=model.lm.dtype == torch.float16)
    return make_optimizer(model.trained(), CONFIG), scaler


def timed_steps(model: AdaptedModel, batch: Batch, micro: int) -> tuple[float, int]:
    """(seconds of a step, micro-batch at the end), after one step that isn't timed."""
    optimizer, scaler = trainer(model)
    _, _, micro = take_step(model, optimizer, scaler, batch, micro, 1.0)
    began = seconds()
    for _ in range(STEPS):
        _, _, micro = take_step(model, optimizer, scaler, batch, micro, 1.0)
    return (seconds() - began) / STEPS, micro


def waits(model: AdaptedModel) -> Row:
    """The share of the training's time spent waiting for its loader: cached vectors, captions of CC3M's lengths."""
    on_gpu = model.lm.device.type == "cuda"
    captions = [[length] for length in caption_lengths(512)]
    words = whole_words(model.lm.tokenizer) or WORDS
    optimizer, scaler = trainer(model)
    with tempfile.TemporaryDirectory() as folder:
        steps = steps_of(model, feature_set(Path(folder) / "set", POOLED, MEDIA, captions, words), 32)
        batches = iter(load_steps(steps, 0, LOADED, workers=2 if on_gpu else 0, pin=on_gpu))
        take_step(model, optimizer, scaler, next(batches), 32, 1.0)
        began, waited = seconds(), 0.0
        for _ in range(LOADED - 1):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            take_step(model, optimizer, scaler, batch, 32, 1.0)
        took = seconds() - began
    return {"ratio": waited / took, "samples/s": 32 * (LOADED - 1) / took}


def levers(lm: LanguageModel, name: str, rounds: int, clock: Clock) -> dict[str, dict]:
    """Samples per second with each lever over those without."""
    model = adapted(lm, "mlp16", POOLED)
    plain = random_batch(lm, POOLED)
    shared = about_few(plain, CAPTIONS)
    long = behind(plain, range(3, 3 + max(PREFIXES.values())))
    cases: dict[str, tuple[Batch, Context, Context]] = {
        "prefix of 64 tokens computed once": (long, nullcontext, partial(prefixes, model, False)),
        f"passes shared by {CAPTIONS} captions": (shared, nullcontext, partial(replaced, model, _can_share=False)),
        "no mask": (plain, nullcontext, partial(replaced, model, _causal_inputs=model._inputs)),
        "logits at labels alone": (plain, nullcontext, partial(replaced, model, _logits=partial(all_logits, model))),
        "torch.compile": (plain, partial(compiled, model), nullcontext),
        "FlexAttention for shared passes": (shared, partial(flexible, model), nullcontext),
    }
    found: dict[str, dict] = {}
    for lever, (batch, on, off) in cases.items():
        label = f"{lever}, on against off, mlp16 on {name}"
        if clock.over:
            found[label] = failed("no time was left for it")
            continue
        found |= tried(label, lambda b=batch, on=on, off=off, label=label: {label: gain(model, b, on, off, rounds)})  # type: ignore[misc]
    return found


def gain(model: AdaptedModel, batch: Batch, on: Context, off: Context, rounds: int) -> Row:
    optimizer, scaler = trainer(model)

    def step(around: Context) -> None:
        with around():
            take_step(model, optimizer, scaler, batch, len(batch), 1.0)

    took = side_by_side({"on": partial(step, on), "off": partial(step, off)}, rounds, seconds)
    losses = [loss_under(model, batch, around) for around in (on, off)]
    return {
        "ratio": took["off"] / took["on"],
        "samples/s": len(batch) / took["on"],
        "losses apart": abs(losses[0] - losses[1]),
    }


@torch.no_grad()
def loss_under(model: AdaptedModel, batch: Batch, around: Context) -> float:
    """The batch's loss per target token, in nats."""
    with around():
        total, count = model.loss(batch.texts, batch.features)
    return total.item() / count


def about_few(batch: Batch, captions: int) -> Batch:
    """The batch with `captions` texts about each of its first media."""
    texts = []
    for number, text in enumerate(batch.texts):
        slot = Segment(slot=batch.keys[number // captions])
        texts.append([slot if segment.slot is not None else segment for segment in text])
    few = -(-len(batch.texts) // captions)
    return Batch(texts, batch.keys[:few], cast(torch.Tensor, batch.rows)[:few], batch.targets)


@contextmanager
def replaced(model: AdaptedModel, **members: object) -> Iterator[None]:
    """A block in which the model has other attributes or methods."""
    before = {name: vars(model)[name] for name in members if name in vars(model)}
    vars(model).update(members)
    try:
        yield
    finally:
        for name in members:
            del vars(model)[name]
        vars(model).update(before)


def all_logits(model: AdaptedModel, inputs: dict, keep: torch.Tensor, prefix: object) -> torch.Tensor:
    """`AdaptedModel._logits` for rows without a prefix, as if the head couldn't be asked for some positions alone."""
    assert prefix is None
    return model.lm.model(**inputs, use_cache=False).logits[keep]


@contextmanager
def compiled(model: AdaptedModel) -> Iterator[None]:
    """A block in which the language model's forward pass is compiled, for any length; compiled once for all blocks."""
    network = model.lm.model
    if not hasattr(network, "_compiled_forward"):
        vars(network)["_compiled_forward"] = torch.compile(network.forward, dynamic=True)
    vars(network)["forward"] = vars(network)["_compiled_forward"]
    try:
        yield
    finally:
        del vars(network)["forward"]


@contextmanager
def flexible(model: AdaptedModel) -> Iterator[None]:
    """A block in which shared passes use FlexAttention, which skips blocks that their mask hides."""
    from torch.nn.attention.flex_attention import create_block_mask

    network, usual = model.lm.model, model.lm.model.config._attn_implementation
    logits = model._logits

    def with_blocks(inputs: dict, keep: torch.Tensor, prefix: object) -> torch.Tensor:
        mask = inputs["attention_mask"]
        rows, _, queries, keys = mask.shape
        visible = (mask >= 0).expand(rows, 1, queries, keys)
        blocks = create_block_mask(lambda b, _, q, k: visible[b, 0, q, k], rows, None, queries, keys, mask.device.type)
        return logits(inputs | {"attention_mask": blocks}, keep, prefix)  # type: ignore[arg-type]

    network.set_attn_implementation("flex_attention")
    try:
        with replaced(model, _logits=with_blocks):
            yield
    finally:
        network.set_attn_implementation(usual)


def recovers(model: AdaptedModel) -> Row:
    """A step that runs out of memory: the micro-batch is halved until it fits, and the loss is that of one text at a
    time.
    """
    batch = random_batch(model.lm, POOLED)
    half = torch.cuda.mem_get_info(model.lm.device)[0] // 2
    optimizer, scaler = trainer(model)
    many = Batch(batch.texts * 64, batch.keys, batch.rows, batch.targets * 64)
    ballast = torch.empty(half, dtype=torch.uint8, device=model.lm.device)
    loss, _, micro = take_step(model, optimizer, scaler, many, len(many.texts), 1.0)
    del ballast
    return {"ratio": micro / len(many.texts), "micro-batch": micro, "loss": loss}


def _length(model: AdaptedModel) -> Callable[[list[Segment]], int]:
    """A function that counts a text's tokens, its medium's included."""
    return lambda text: sum(len(segment.ids) if segment.slot is None else model.adapter.tokens for segment in text)


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
