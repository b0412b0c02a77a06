"""Does training ever wait for int8 or int4? Patches read at random on one thread, as a worker does.

A worker hands over what is stored, and the step decodes it on its device. The data lie in the page cache, so that only
the reader's own work counts; from a disk, fewer bytes arrive sooner.
"""

import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import side_by_side
from benchmarks._synthetic import feature_set
from periscope.adapters.projectors import FeatureShape
from periscope.shards.layout import stored_bytes
from periscope.shards.read import FeatureSet

PATCHES = FeatureShape("patches", 729, 1152, (27, 27))
MEDIA, BATCH = 96, 8
CODECS = ("fp16", "int8", "int4")


def measure(rounds: int) -> dict[str, dict]:
    """{"729 x 1152 patches from CODEC, against fp16": {"ratio": of the samples per second, "samples/s", "decoded/s": by
    the CPU, "kB each"}}.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sets = {codec: feature_set(Path(folder) / codec, PATCHES, MEDIA, [[12]], ["word"], codec) for codec in CODECS}
        ways: dict[str, Callable[[], object]] = {codec: partial(_read, features) for codec, features in sets.items()}
        coded = {codec: sets[codec].read_coded(sets[codec].keys[:BATCH], "patches") for codec in CODECS[1:]}
        ways |= {f"{codec} decoded": features.decode for codec, features in coded.items()}
        took = side_by_side(ways, rounds, time.process_time)
    torch.set_num_threads(threads)
    size = f"{PATCHES.tokens} x {PATCHES.width}"
    return {
        f"{size} patches from {codec}, against fp16": {
            "ratio": took["fp16"] / took[codec],
            "samples/s": MEDIA / took[codec],
            "decoded/s": BATCH / took[f"{codec} decoded"],
            "kB each": stored_bytes(features.manifest["features"]["patches"]) / 1000,
        }
        for codec, features in sets.items()
        if codec != "fp16"
    }


def _read(features: FeatureSet) -> None:
    keys = random.Random(0).sample(features.keys, len(features))
    for first in range(0, len(keys), BATCH):
        features.read_coded(keys[first : first + BATCH], "patches")
