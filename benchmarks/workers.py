"""What does decoding in worker processes cost? The same pictures decoded in this process, alone and with an encoder.

Counted are the processor seconds of this process and of all below it, with one worker and one thread each way.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig

from benchmarks import clip_retrieval, side_by_side
from benchmarks.decoding import noisy_photo
from periscope.precompute.allocator import keep_freed_memory
from periscope.precompute.decoding import DecodingPool, Source
from periscope.precompute.media import decode_image, read_file
from periscope.precompute.pipeline.reader import GROUP

PICTURES, ENCODED, SIZE = 400, 96, (512, 384)
VIT = ViTConfig(patch_size=32)  # a ViT-B/32, the shape of CLIP's smallest encoder
TICKS = os.sysconf("SC_CLK_TCK")


def measure(rounds: int) -> dict[str, dict]:
    """{"decode in a worker": {"ratio": of pictures per processor second, ...}, "precompute with a worker": the same}"""
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _alone(Path(folder), rounds) | _encoding(Path(folder), rounds)
    finally:
        torch.set_num_threads(threads)


def _alone(root: Path, rounds: int) -> dict[str, dict]:
    paths = [root / f"{number}.jpg" for number in range(PICTURES)]
    for path in paths:
        path.write_bytes(noisy_photo(*SIZE))
    sources = [Source(decode_image, path=str(path)) for path in paths]

    def here() -> None:
        for path in paths:
            data = read_file(path)
            hashlib.sha256(data).digest()
            decode_image(data)

    with DecodingPool(1) as pool:

        def worker() -> None:
            for first in range(0, PICTURES, GROUP):
                for outcome in pool.outcomes(sources[first : first + GROUP]):
                    outcome.get()

        took = side_by_side({"here": here, "worker": worker}, rounds, processor_seconds)
    return {"decode in a worker": _row(took, PICTURES)}


def _encoding(root: Path, rounds: int) -> dict[str, dict]:
    sets = count()
    clip_retrieval.prepare(root, VIT, ENCODED, SIZE)
    encoder = clip_retrieval.encoder_of(root)
    decoders = {"here": None, "worker": decode_image}

    def encode(decoder: Callable[[bytes], Any] | None) -> None:
        encoder.decoder, encoder.decode = lambda: decoder, decode_image  # type: ignore[method-assign, assignment]
        clip_retrieval.stored(root, f"set-{next(sets)}", workers=1)

    ways = {name: partial(encode, decoder) for name, decoder in decoders.items()}
    took = side_by_side(ways, rounds, processor_seconds)
    del encoder.decoder, encoder.decode
    return {"precompute with a worker": _row(took, ENCODED)}


def _row(took: dict[str, float], pictures: int) -> dict[str, float]:
    here, worker = (1000 * took[way] / pictures for way in ("here", "worker"))
    return {"ratio": here / worker, "ms each here": here, "ms each in a worker": worker}


def processor_seconds() -> float:
    """Processor seconds of this process and of all below it, those that ended included."""
    times, parents = dict[int, int](), dict[int, int]()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)], times[int(folder.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    own = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(times[process] for process in own) / TICKS
