"""Does decoding keep up? Decoding and preprocessing alone, on one thread and on two."""

import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image

from benchmarks import side_by_side
from periscope.precompute.allocator import keep_freed_memory
from periscope.precompute.encoders import Encoder, load_encoder

SIZES = {"500x333": ((500, 333), 400), "12 megapixels": ((4000, 3000), 12)}


def measure(rounds: int) -> dict[str, dict]:
    """{"decode on two threads, SIZE": {"ratio": to one thread's rate, "images/s on one"}}."""
    keep_freed_memory()
    threads, found = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    encoder = load_encoder("demo")
    for name, (size, number) in SIZES.items():
        photo = noisy_photo(*size)
        ways = {threads: partial(_decode, encoder, photo, number, threads) for threads in (1, 2)}
        seconds = side_by_side(ways, rounds)
        found[f"decode on two threads, {name}"] = {
            "ratio": seconds[1] / seconds[2],
            "images/s on one": number / seconds[1],
        }
    torch.set_num_threads(threads)
    return found


def noisy_photo(width: int, height: int) -> bytes:
    """A JPEG of smooth noise, quality 90, with about as many bytes as a photo."""
    noise = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _decode(encoder: Encoder, photo: bytes, number: int, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(encoder.inputs, [photo] * number))
