"""The summary of media that were left out, with advice where one reason is frequent."""

from collections import Counter
from collections.abc import Sequence

from periscope.precompute.decoding.pool import CRASH
from periscope.precompute.pipeline.filters import REASONS
from periscope.text import printable

FREQUENT = 0.05  # share of the media from which a reason gets a warning
ADVICE = {
    "HEIC needs a plug-in": "pip install pillow-heif, and run the same command again",
    "AVIF needs a newer Pillow": "pip install -U pillow, and run the same command again",
    "truncated": "the files were cut while being copied or downloaded: fetch them again",
    "empty file": "the files were cut while being copied or downloaded: fetch them again",
    "not a picture": "these files aren't what their names say: look at one of them",
    "missing file": "the words name media that aren't there: check --data and the paths in it",
    "outside the data folder": "name the folder that holds both the words and the media as --data",
    "can't be opened": "check the permissions of the files",
    "beyond float16": "pass --precision fp32; if that doesn't help, this encoder's features don't fit float16",
    "not finite": "pass --precision fp32: the encoder overflows in half precision",
    "too many pixels": "make the images smaller",
    "several files of that name": "keep one of them, or name a smaller folder as --data",
    "words can't be read": "the file is cut or damaged: download it again",
    "damaged archive": "download it again",
    CRASH: "they may be made to do harm; they aren't opened again",
    "too large for the memory": "raise --max-memory, if this machine has more",
    "compressed archive": "unpack it to a plain .tar",
}


def report_rejects(rows: Sequence[dict[str, str]], asked: int, dropped_texts: int) -> None:
    """Print how many media were left out and why.

    rows: the lines of rejected.jsonl · asked: number of media that were to be encoded · dropped_texts: texts that lost
    a medium.
    """
    counts = Counter(row["reason"] for row in rows)
    for reason, number in counts.most_common():
        if number > FREQUENT * asked and not reason.startswith(REASONS):
            advice = ADVICE.get(reason, "look at rejected.jsonl")
            print(f"warning: {number} of {asked} were left out for one reason, {reason!r}: {advice}")
    if rows:
        reasons = ", ".join(f"{number} {reason}" for reason, number in counts.most_common())
        print(f"{len(rows)} left out ({printable(reasons)}); rejected.jsonl lists them")
    if dropped_texts:
        print(f"{dropped_texts} texts were left out with their media")
