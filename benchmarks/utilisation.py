"""How much of a GPU's peak throughput does training an adapter on a 7B model reach, within 22 GiB?

A step needs 4 operations per parameter and real token: forward, and backward to the inputs; frozen weights get no
gradient. The peak is that of one large matrix product in the model's dtype. Beside it stands training without each
optimisation: batches of similar length, and logits at the labels only (the published loop has neither).
"""

import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from benchmarks._synthetic import CONFIG, adapted, caption_lengths, feature_set, steps_of
from benchmarks.memory import LIMIT, MISTRAL, PRECISIONS, save_random
from benchmarks.published_loop import cut, pairs_of, publish
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel
from periscope.adapters.projectors import FeatureShape
from periscope.training.data.dataset import Batch
from periscope.training.data.steps import TrainingSteps, load_steps
from periscope.training.memory.plan import GIB, plan
from periscope.training.step import make_optimizer, take_step

SPEC, SHAPE = "mlp16", FeatureShape("pooled", 1, 768)
MEDIA, BATCH, STEPS, WARM = 4096, 32, 24, 4
THEIRS = 8  # texts in a batch of the published loop
SIDE = 8192  # of the matrices whose product gives the rate


def measure(rounds: int) -> dict[str, dict]:
    """{"share of the card's rate, mlp16 on 7B in PRECISION": {"ratio", "samples/s", "micro-batch", "reserved GiB",
    "waiting": share of the time spent waiting for data}, "without LEVER": {"ratio": to samples per second with all
    optimisations, "samples/s"}}; empty without a GPU.
    """
    if not torch.cuda.is_available():
        return {}
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_per_process_memory_fraction(LIMIT / torch.cuda.get_device_properties(device).total_memory)
    try:
        return measure_on("cuda", MISTRAL, PRECISIONS, rounds)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measure_on(device: str, config: PretrainedConfig, precisions: tuple[str, ...], rounds: int) -> dict[str, dict]:
    """Like `measure`, for a model of any configuration; on a CPU without memory."""
    found = {}
    logging.disable_progress_bar()
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    with tempfile.TemporaryDirectory() as folder:
        save_random(config, device, Path(folder) / "lm")
        for precision in precisions:
            lm = load_language_model(str(Path(folder) / "lm"), device, precision)
            model = adapted(lm, SPEC, SHAPE)
            path = Path(folder) / f"features-{precision}"
            captions = [[length] for length in caption_lengths(512)]
            steps = steps_of(model, feature_set(path, SHAPE, MEDIA, captions, whole_words(lm.tokenizer)), BATCH)
            rate = multiplications(device, lm.dtype)
            row = train(model, steps, rounds)
            row = {"ratio": 4 * parameters * row.pop("tokens/s") / rate} | row
            found[f"share of the card's rate, {SPEC} on 7B in {precision}"] = row
            if precision == precisions[0]:
                found |= without(model, steps, rounds, row["samples/s"])
            del lm, model, steps
            gc.collect()
    return found


def multiplications(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a product of two SIDE x SIDE matrices, the best of ten."""
    a, b = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    return 2 * SIDE**3 / min(_seconds(lambda: a @ b) for _ in range(10))


def train(model: AdaptedModel, steps: TrainingSteps, rounds: int) -> dict[str, float]:
    """Training steps as train.py takes them, with its loader; the median of `rounds`."""
    lm, adapter = model.lm, model.adapter
    on_gpu = lm.device.type == "cuda"
    longest = max(steps.index.lengths)
    micro = plan(lm, adapter, longest, shared=False).micro_batch(BATCH, longest)
    optimizer = make_optimizer(model.trained(), CONFIG)
    scaler = torch.amp.GradScaler(lm.device.type, enabled=lm.dtype == torch.float16)
    took, waited, tokens = [], [], []
    for number in range(rounds):
        first, waiting, real = number * STEPS, 0.0, 0
        batches = iter(load_steps(steps, first, first + WARM + STEPS, workers=2 if on_gpu else 0, pin=on_gpu))
        for _ in range(WARM):
            _, _, micro = take_step(model, optimizer, scaler, next(batches), micro, 1.0)
        began = time.perf_counter()
        for step in range(first + WARM, first + WARM + STEPS):
            asked = time.perf_counter()
            batch = next(batches)
            waiting += time.perf_counter() - asked
            _, _, micro = take_step(model, optimizer, scaler, batch, micro, 1.0)
            epoch, place = divmod(step, steps.per_epoch)
            real += sum(steps.index.lengths[i] for i in steps.order(epoch)[place])
        took.append(time.perf_counter() - began)
        waited.append(waiting)
        tokens.append(real)
    seconds = statistics.median(took)
    row = {"tokens/s": statistics.median(tokens) / seconds, "samples/s": STEPS * BATCH / seconds, "micro-batch": micro}
    row["waiting"] = statistics.median(waited) / seconds
    return row | ({"reserved GiB": torch.cuda.max_memory_reserved(lm.device) / GIB} if on_gpu else {})


def without(model: AdaptedModel, steps: TrainingSteps, rounds: int, best: float) -> dict[str, dict]:
    """Samples per second without one optimisation, relative to `best` with all of them."""
    texts = [i for step in steps.order(0)[:STEPS] for i in step]
    random.Random(0).shuffle(texts)
    at_random = [steps.dataset.batch([steps.index.texts[i] for i in texts[n : n + BATCH]])
                 for n in range(0, len(texts), BATCH)]  # fmt: skip
    drawn = [pair for batch in at_random for pair in pairs_of(batch)]
    ways: dict[str, Callable[[], object]] = {
        "batches of like length": partial(_take, model, at_random),
        "these, logits at labels alone, splicing at once (the published loop)": partial(
            publish, model, cut(drawn, THEIRS)
        ),
    }
    found = {}
    for name, way in ways.items():
        way()
        each = len(texts) / statistics.median(_seconds(way) for _ in range(rounds))
        found[f"without {name}"] = {"ratio": each / best, "samples/s": each}
    return found


def whole_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Words that are one token each."""
    words = sorted({piece.lstrip("▁Ġ") for piece in tokenizer.get_vocab()})
    alone = len(tokenizer("a").input_ids)
    return [word for word in words if word.isalpha() and len(tokenizer(f"a {word}").input_ids) == alone + 1]


def _take(model: AdaptedModel, batches: list[Batch]) -> None:
    optimizer = make_optimizer(model.trained(), CONFIG)
    scaler = torch.amp.GradScaler(model.lm.device.type, enabled=model.lm.dtype == torch.float16)
    longest = max(sum(len(segment.ids) for segment in text) for batch in batches for text in batch.texts)
    longest += model.adapter.tokens
    micro = plan(model.lm, model.adapter, longest, shared=False).micro_batch(BATCH, longest)
    for batch in batches:
        _, _, micro = take_step(model, optimizer, scaler, batch, micro, 1.0)


def _seconds(way: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
