"""Does a 7B model train on a 24 GB card? Peak memory against the plan, and speed, within 22 GiB of a GPU.

22 GiB is what a desktop leaves of 24 GB. The weights are random, in Mistral-7B's shape. They are written to a temporary
folder (15 GB of disk) and loaded like any model.
"""

import gc
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, MistralConfig, PretrainedConfig
from transformers.utils import logging

from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.tiny import sentencepiece_like
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import Segment
from periscope.adapters.prompting.template import Template
from periscope.training.config import TrainConfig
from periscope.training.data.dataset import Batch
from periscope.training.memory.plan import GIB, plan
from periscope.training.step import make_optimizer, take_step

LIMIT = 22 * GIB
MISTRAL = MistralConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=32768,
    sliding_window=None,
)
PRECISIONS = ("fp16", "8bit", "4bit")
# doubutsu's, AnyMAL's at CLIP L-336's patches, and one token for each of SigLIP so400m-384's patches
ADAPTERS = {
    "mlp16": FeatureShape("pooled", 1, 768),
    "perceiver64": FeatureShape("patches", 576, 1024, (24, 24)),
    "mlp": FeatureShape("patches", 729, 1152, (27, 27)),
}
BATCH, WORDS = 16, 64
CONFIG = TrainConfig(lr=1e-3)


def measure(rounds: int) -> dict[str, dict]:
    """{"ADAPTER on 7B in PRECISION": {"ratio": of peak memory to the plan, "GiB", "reserved GiB", "planned GiB",
    "samples/s", "micro-batch"}}; empty without a GPU. Raises RunError if one text alone doesn't fit.
    """
    if not torch.cuda.is_available():
        return {}
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_per_process_memory_fraction(LIMIT / torch.cuda.get_device_properties(device).total_memory)
    try:
        return measure_on("cuda", MISTRAL, PRECISIONS, ADAPTERS, rounds)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measure_on(
    device: str, config: PretrainedConfig, precisions: tuple[str, ...], adapters: dict[str, FeatureShape], rounds: int
) -> dict[str, dict]:
    """Like `measure`, for a model of any configuration; on a CPU without memory and ratio."""
    found = {}
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save_random(config, device, Path(folder))
        for precision in precisions:
            lm = load_language_model(folder, device, precision)
            for spec, shape in adapters.items():
                found[f"{spec} on 7B in {precision}"] = train(lm, spec, shape, rounds)
                _empty(device)
            del lm
            _empty(device)
    return found


def save_random(config: PretrainedConfig, device: str, folder: Path) -> None:
    """Write a model of random fp16 weights, made on `device`, and a tokenizer with some of its words."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.save_pretrained(folder)
    sentencepiece_like().save_pretrained(folder)
    del model
    _empty(device)


def train(lm: LanguageModel, spec: str, shape: FeatureShape, rounds: int) -> dict[str, float]:
    """Train an adapter for one warm-up step and `rounds` measured ones, as train.py would within LIMIT."""
    on_gpu = lm.device.type == "cuda"
    free = LIMIT - torch.cuda.memory_reserved(lm.device) if on_gpu else None
    torch.manual_seed(0)
    adapter = Adapter(spec, shape, lm.hidden_size, lm.embedding_rms).to(lm.device)
    model = AdaptedModel(lm, adapter, Prompt(lm.tokenizer, Template("plain")))
    batch = random_batch(lm, shape)
    longest = adapter.tokens + 1 + WORDS
    needs = replace(plan(lm, adapter, longest, shared=False), free=free)
    micro = needs.micro_batch(BATCH, longest)
    optimizer = make_optimizer(dict(adapter.named_parameters()), CONFIG)
    scaler = torch.amp.GradScaler(lm.device.type, enabled=lm.dtype == torch.float16)
    seconds = []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(lm.device)
    for number in range(rounds + 1):
        began = time.perf_counter()
        _, _, micro = take_step(model, optimizer, scaler, batch, micro, clip=1.0)
        if number:
            seconds.append(time.perf_counter() - began)
    planned = needs.weights + needs.adapter + micro * needs.per_text(longest)
    row = {"samples/s": BATCH / statistics.median(seconds), "micro-batch": micro, "planned GiB": planned / GIB}
    if on_gpu:
        peak = torch.cuda.max_memory_allocated(lm.device)
        reserved = torch.cuda.max_memory_reserved(lm.device)
        row |= {"ratio": peak / planned, "GiB": peak / GIB, "reserved GiB": reserved / GIB}
    return row


def random_batch(lm: LanguageModel, shape: FeatureShape) -> Batch:
    """BATCH texts: `<s>`, a medium of its own, and WORDS target words."""
    size = (shape.width,) if shape.kind == "pooled" else (shape.tokens, shape.width)
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(3, len(lm.tokenizer), (BATCH, WORDS), generator=generator).tolist()
    keys = [f"m{number}" for number in range(BATCH)]
    first = Segment(ids=(lm.tokenizer.bos_token_id,))
    texts = [
        [first, Segment(slot=key), Segment(ids=tuple(ids), target=True)] for key, ids in zip(keys, words, strict=True)
    ]
    rows = torch.randn(BATCH, *size, generator=generator).half()
    return Batch(texts, keys, rows, BATCH * WORDS)


def _empty(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
