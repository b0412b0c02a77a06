"""Is encoding time the encoder's? `precompute` on files against a bare loop of the same encoder over ready tensors."""

import contextlib
import os
import tempfile
from pathlib import Path

import torch
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from benchmarks import side_by_side
from benchmarks.decoding import noisy_photo
from precompute.encoders import load_encoder
from precompute.job import precompute
from precompute.memory import keep_freed_memory
from precompute.sources import collect

PICTURES, BATCH = 96, 32


def measure(rounds: int) -> dict[str, dict]:
    """{"precompute against the bare encoder": {"ratio": of their samples per second, ...}}, for a ViT-B/16 of random
    weights and photos of 500 x 333, both in a process that keeps its memory.
    """
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as quiet:
        root = Path(folder)
        ViTModel(ViTConfig()).save_pretrained(root / "vit")
        ViTImageProcessor().save_pretrained(root / "vit")
        (root / "photos").mkdir()
        for number in range(PICTURES):
            (root / "photos" / f"{number}.jpg").write_bytes(noisy_photo(500, 333 + number))
        encoder = load_encoder(f"transformers:{root / 'vit'}")
        ready = torch.stack([encoder.inputs((root / "photos" / f"{n}.jpg").read_bytes()) for n in range(BATCH)])
        sets = iter(range(10**6))

        def bare() -> None:
            for _ in range(PICTURES // BATCH):
                encoder.encode(ready, ("pooled",))

        def whole() -> None:
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                precompute(collect(root / "photos"), encoder, ("pooled",), root / f"set-{next(sets)}", BATCH, 2)

        seconds = side_by_side({"bare": bare, "precompute": whole}, rounds)
    return {
        "precompute against the bare encoder": {
            "ratio": seconds["bare"] / seconds["precompute"],
            "samples/s": PICTURES / seconds["precompute"],
        }
    }
