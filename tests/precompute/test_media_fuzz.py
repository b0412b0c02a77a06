"""What is decoded of random clips, sounds and pictures is what FFmpeg's programs and Pillow make of them.

`python tests/precompute/test_media_fuzz.py [number] [first seed]` prints what differs.
"""

import shutil
import sys
from collections.abc import Callable
from functools import partial

import pytest
from media_fuzz import check_clip, check_picture, check_sound

from periscope.precompute.media import decode_clip, decode_image, decode_sound

CHECKS: dict[str, Callable[[int], str]] = {
    "clip": partial(check_clip, decode=decode_clip),
    "sound": partial(check_sound, decode=decode_sound),
    "picture": partial(check_picture, decode=decode_image),
}
SHARES = {"clip": 200, "sound": 200, "picture": 100}


def wrong(kind: str, seeds: range) -> list[str]:
    return [f"{kind} {seed}: {what}" for seed in seeds if (what := CHECKS[kind](seed))]


def needs(kind: str) -> None:
    if kind != "picture" and not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        pytest.skip("ffmpeg isn't installed")


@pytest.mark.parametrize(("kind", "count"), [("clip", 6), ("sound", 8), ("picture", 40)])
def test_some(kind: str, count: int) -> None:
    needs(kind)
    assert not wrong(kind, range(count))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARES)
def test_many(kind: str) -> None:
    needs(kind)
    assert not wrong(kind, range(SHARES[kind]))


if __name__ == "__main__":
    number, first = (*map(int, sys.argv[1:]), 500, 0)[:2] if len(sys.argv) < 3 else map(int, sys.argv[1:3])
    for kind, share in SHARES.items():
        seeds = range(first, first + number * share // sum(SHARES.values()))
        print(f"{kind}: {len(seeds)} tried", *wrong(kind, seeds), sep="\n  ", flush=True)
