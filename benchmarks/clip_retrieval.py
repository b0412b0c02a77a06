"""How fast is `precompute` compared with clip-retrieval? Samples per second of the same encoder on the same files.

clip-retrieval's clip_inference is rebuilt from its description (https://github.com/rom1504/clip-retrieval): a
DataLoader whose workers decode and preprocess, batches through the encoder, all vectors of a partition kept in memory
and written as one .npy file at the end. Its metadata is left out. The faster of one worker and two counts. `precompute`
also writes captions, hashes and an index, syncs to disk, and holds at most one shard. Each variant has a process of its
own, because `precompute` changes how its process treats freed memory.
"""

import contextlib
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from benchmarks import process_of_its_own, side_by_side
from benchmarks.decoding import noisy_photo
from periscope.precompute.allocator import keep_freed_memory
from periscope.precompute.encoders import Encoder, load_encoder
from periscope.precompute.pipeline.job import Job, precompute
from periscope.precompute.sources import collect

PICTURES, BATCH, WORKERS = 256, 32, (1, 2)
VIT = ViTConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536)


class Files(Dataset):
    """Pictures, read and preprocessed on access."""

    def __init__(self, folder: Path, encoder: Encoder):
        self.paths, self.encoder = sorted(folder.glob("*.jpg")), encoder

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.encoder.inputs(self.paths[number].read_bytes())


def measure(rounds: int) -> dict[str, dict]:
    """{"precompute against clip-retrieval's way": {"ratio": of samples per second, "samples/s", "its workers"}}, for
    half a ViT-S/16 with random weights and photos of 500 x 333.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as processes:
        root, sets = Path(folder), count()
        prepare(root, VIT, PICTURES)
        own, its = (processes.enter_context(process_of_its_own(begin)) for begin in (keep_freed_memory, None))

        def ours() -> None:
            own.submit(stored, root, f"set-{next(sets)}").result()

        theirs = {n: partial(_result, its, root, n) for n in WORKERS}
        took = side_by_side(theirs, 1)
        best = min(took, key=took.__getitem__)
        both = side_by_side({"ours": ours, "theirs": theirs[best]}, rounds)
    return {
        "precompute against clip-retrieval's way": {
            "ratio": both["theirs"] / both["ours"],
            "samples/s": PICTURES / both["ours"],
            "its workers": best,
        }
    }


def _result(process: ProcessPoolExecutor, root: Path, workers: int) -> Path:
    """The result of `partition` in that process."""
    return process.submit(partition, root, workers).result()


def prepare(root: Path, config: ViTConfig, pictures: int, size: tuple[int, int] = (500, 333)) -> None:
    """Write the encoder to `vit` and the photos to `photos`."""
    ViTModel(config).save_pretrained(root / "vit")
    ViTImageProcessor().save_pretrained(root / "vit")
    (root / "photos").mkdir()
    for number in range(pictures):
        (root / "photos" / f"{number}.jpg").write_bytes(noisy_photo(size[0], size[1] + number))


def stored(root: Path, name: str, workers: int = 2) -> Path:
    """Encode all photos into the feature set `name`, as precompute.py does."""
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        precompute(Job(collect(root / "photos"), encoder_of(root), ("pooled",), root / name, BATCH, workers))
    return root / name


def partition(root: Path, workers: int) -> Path:
    """Encode all photos into `img_emb_0.npy` `(pictures, width)` float16, each of unit length."""
    found, encoder = [], encoder_of(root)
    for batch in DataLoader(Files(root / "photos", encoder), batch_size=BATCH, num_workers=workers):
        vectors = encoder.encode(batch, ("pooled",))["pooled"]
        found.append((vectors / vectors.norm(dim=-1, keepdim=True)).cpu().half().numpy())
    np.save(root / "img_emb_0.npy", np.concatenate(found))
    return root / "img_emb_0.npy"


@cache
def encoder_of(root: Path) -> Encoder:
    """The encoder in that folder, loaded once per process."""
    return load_encoder(f"transformers:{root / 'vit'}")
