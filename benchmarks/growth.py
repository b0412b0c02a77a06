"""Does a sample cost more in a large set? Bytes and system calls per random read, and memory per text."""

import random
import tempfile
import tracemalloc
from pathlib import Path

from benchmarks._synthetic import WORDS, adapted, caption_lengths, feature_set, language_model, steps_of
from periscope.adapters.projectors import FeatureShape
from periscope.shards.read import FeatureSet

SHAPE = FeatureShape("pooled", 1, 64)
SMALL, LARGE = 1_000, 100_000
READS = 512
ASKED = 64  # bytes of memory for a text


def measure(rounds: int) -> dict[str, dict]:
    """{"bytes of a random read, a large set against a small one": {"ratio", "bytes"}, "system calls of a random read,
    ...": {"ratio", "calls"}, "memory of a text, against 64 bytes": {"ratio", "bytes", "media's bytes"}}.

    The system and tracemalloc count these, so one round is enough, whatever `rounds` says.
    """
    with tempfile.TemporaryDirectory() as folder:
        captions = [[length] for length in caption_lengths(512)]
        made = [feature_set(Path(folder) / str(size), SHAPE, size, captions, WORDS).path for size in (SMALL, LARGE)]
        (few_bytes, few_calls), (many_bytes, many_calls) = (_reads(FeatureSet(path)) for path in made)
        (few_media, few_texts), (many_media, many_texts) = map(_memory, made)
    more = LARGE - SMALL
    each = (many_texts - few_texts) / more
    return {
        "bytes of a random read, a large set against a small one": {
            "ratio": many_bytes / few_bytes,
            "bytes": many_bytes,
        },
        "system calls of a random read, a large set against a small one": {
            "ratio": many_calls / few_calls,
            "calls": many_calls,
        },
        "memory of a text, against 64 bytes": {
            "ratio": each / ASKED,
            "bytes": each,
            "media's bytes": (many_media - few_media) / more,
        },
    }


def _reads(features: FeatureSet) -> tuple[float, float]:
    """Bytes and read calls per random read, over READS reads; the first of each shard, which opens the file, is left
    out.
    """
    features.read_many(features.keys[:: max(1, len(features) // 512)], SHAPE.kind)
    keys = random.Random(0).choices(features.keys, k=READS)
    before = _counters()
    features.read_many(keys, SHAPE.kind)
    after = _counters()
    return (after[0] - before[0]) / READS, (after[1] - before[1]) / READS


def _counters() -> tuple[int, int]:
    """Bytes and calls of all reads of this process so far (proc(5), Linux only)."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"]), int(lines["syscr"])


def _memory(path: Path) -> tuple[int, int]:
    """Bytes that an open set holds, and that its texts hold together with the steps of an epoch."""
    model = adapted(language_model(layers=1, width=64, inner=64, vocab=2000), "mlp2", SHAPE)
    tracemalloc.start()
    features = FeatureSet(path)
    media = tracemalloc.get_traced_memory()[0]
    steps = steps_of(model, features, 32)
    steps[0]
    texts = tracemalloc.get_traced_memory()[0] - media
    tracemalloc.stop()
    return media, texts
