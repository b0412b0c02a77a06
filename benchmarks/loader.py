"""Does training ever wait for the loader? Samples per second of the loader alone, and its share of a step.

Features are read at random through the index, warm in the page cache, and texts are read and tokenised each time: in
one process and one thread, and by the two workers that training on a GPU has.
"""

import random
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import webdataset
from safetensors.torch import load

from benchmarks import side_by_side
from benchmarks._meters import DEVICE, seconds
from benchmarks._synthetic import CONFIG, adapted, caption_lengths, feature_set, language_model, steps_of
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.projectors import FeatureShape
from periscope.shards.read import FeatureSet
from periscope.training.data.steps import TrainingSteps, load_steps
from periscope.training.step import make_optimizer, take_step

POOLED, PATCHES = FeatureShape("pooled", 1, 768), FeatureShape("patches", 729, 1152, (27, 27))
MANY, FEW = 4096, 160
READ, BATCH = 64, 16
BLOCK = 1 << 20
EPOCHS = 4  # of the workers, so that starting them counts for little
SLICE: dict[str, Any] = {
    "layers": 2,
    "width": 2048,
    "inner": 8192,
    "vocab": 32_000,
}  # two layers of Llama 3.2 1B's sixteen
PHRASES = ["a", "large", "red", "circle", "in", "the", "centre", "small", "blue", "star", "to", "left"]


def measure(rounds: int) -> dict[str, dict]:
    """{"pooled features by the index, against webdataset's stream": {"ratio", "samples/s"}, "... with their texts
    tokenised, against without": ..., "texts and features by two workers, against one process": ..., "729 x 1152 patches
    by the index, against plain reads in order": ..., "the loader's share of a step, WHERE": {"ratio": of CPU time}}.
    """
    found = {}
    demo = load_language_model("demo/backbones/lm", DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        captions = [[length] for length in caption_lengths(MANY)]
        pooled = feature_set(root / "pooled", POOLED, MANY, captions, PHRASES)
        steps = steps_of(adapted(demo, "mlp16", POOLED), pooled, 32)
        ways = {
            "index": partial(_read, pooled, "pooled", READ),
            "webdataset": partial(_stream, pooled),
            "texts": partial(_load, steps, steps.per_epoch),
        }
        took = side_by_side(ways, rounds, seconds)
        found["pooled features by the index, against webdataset's stream"] = {
            "ratio": took["webdataset"] / took["index"],
            "samples/s": MANY / took["index"],
        }
        found["the same with their texts tokenised, against without"] = {
            "ratio": took["index"] / took["texts"],
            "samples/s": MANY / took["texts"],
        }
        workers = partial(_load_ahead, steps, EPOCHS * steps.per_epoch)
        took = side_by_side({"two": workers, "one": partial(_load, steps, steps.per_epoch)}, rounds)
        each = took["two"] / EPOCHS
        found["texts and features by two workers, against one process"] = {
            "ratio": took["one"] / each,
            "samples/s": MANY / each,
        }
        patches = feature_set(root / "patches", PATCHES, FEW, [[12]], PHRASES)
        took = side_by_side(
            {"index": partial(_read, patches, "patches", BATCH), "plain": partial(_read_plainly, patches)}, rounds
        )
        found["729 x 1152 patches by the index, against plain reads in order"] = {
            "ratio": took["plain"] / took["index"],
            "samples/s": FEW / took["index"],
        }
        for where, lm in {"the demo": demo, "2 of a 1B model's 16 layers": language_model(**SLICE)}.items():
            share = _share(lm, pooled, rounds)
            found[f"the loader's share of a step, {where}"] = {"ratio": share}
    return found


def _read(features: FeatureSet, kind: str, batch: int) -> None:
    keys = random.Random(0).sample(features.keys, len(features))
    for first in range(0, len(keys), batch):
        features.read_many(keys[first : first + batch], kind)


def _stream(features: FeatureSet) -> None:
    shards = [str(features.path / shard["name"]) for shard in features.manifest["shards"]]
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        load(sample["safetensors"])


def _read_plainly(features: FeatureSet) -> None:
    block = bytearray(BLOCK)
    for shard in features.manifest["shards"]:
        with open(features.path / shard["name"], "rb", buffering=0) as file:
            while file.readinto(block):
                pass


def _load(steps: TrainingSteps, count: int) -> None:
    for number in range(count):
        steps[number]


def _load_ahead(steps: TrainingSteps, count: int) -> None:
    for _ in load_steps(steps, 0, count, workers=2, pin=DEVICE != "cpu"):
        pass


def _share(lm: LanguageModel, features: FeatureSet, rounds: int) -> float:
    """The loader's share of a step's CPU time (on a GPU, of the wall time if it didn't work ahead)."""
    model = adapted(lm, "mlp16", POOLED)
    steps = steps_of(model, features, BATCH)
    optimizer = make_optimizer(model.trained(), CONFIG)
    scaler = torch.amp.GradScaler(lm.device.type, enabled=lm.dtype == torch.float16)
    batch = steps[steps.per_epoch // 2]
    train = partial(take_step, model, optimizer, scaler, batch, len(batch), 1.0)
    took = side_by_side({"load": partial(_load, steps, 32), "train": train}, rounds, seconds)
    return took["load"] / 32 / (took["load"] / 32 + took["train"])
