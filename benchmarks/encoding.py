"""Is encoding limited by the encoder? `precompute` on files, against the bare encoder on tensors in memory."""

import tempfile
from itertools import count
from pathlib import Path

import torch
from transformers import ViTConfig

from benchmarks import side_by_side
from benchmarks.clip_retrieval import BATCH, encoder_of, prepare, stored
from periscope.precompute.allocator import keep_freed_memory

PICTURES = 96


def measure(rounds: int) -> dict[str, dict]:
    """{"precompute against the bare encoder": {"ratio": of samples per second, ...}}, for a ViT-B/16 with random
    weights and photos of 500 x 333, both in a process that keeps freed memory.
    """
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        root, sets = Path(folder), count()
        prepare(root, ViTConfig(), PICTURES)
        encoder = encoder_of(root)
        ready = torch.stack([encoder.inputs((root / "photos" / f"{n}.jpg").read_bytes()) for n in range(BATCH)])

        def bare() -> None:
            for _ in range(PICTURES // BATCH):
                encoder.encode(ready, ("pooled",))

        def whole() -> None:
            stored(root, f"set-{next(sets)}")

        seconds = side_by_side({"bare": bare, "precompute": whole}, rounds)
    return {
        "precompute against the bare encoder": {
            "ratio": seconds["bare"] / seconds["precompute"],
            "samples/s": PICTURES / seconds["precompute"],
        }
    }
