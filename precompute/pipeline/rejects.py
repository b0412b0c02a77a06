"""The summary of media that were left out, with advice where one reason is frequent."""

from collections import Counter
from collections.abc import Sequence

from periscope.precompute.decoding.pool import CRASH, KILLED, SLOW
from periscope.precompute.media.file import UNREAD
from periscope.precompute.pipeline.filters import REASONS
from periscope.text import printable

FREQUENT = 0.05  # share of the media from which a reason gets a warning
FETCH_AGAIN = "the files were cut while being copied or downloaded: fetch them again"
NAMED_OTHERWISE = "these files aren't what their names say: look at one of them"
SAVE_8_BITS = "save them as 8 or 16 bits: nobody knows which value is white"
LOOK = "mend them as rejected.jsonl says, line by line"
ADVICE = {
    "shared cover": "entries about one cover contradict one another, so OCR-VQA is used without them",
    # media
    "HEIC needs a plug-in": "pip install pillow-heif, and run the same command again",
    "AVIF needs a newer Pillow": "pip install -U pillow, and run the same command again",
    "JPEG XL needs a plug-in": "pip install pillow-jxl-plugin, and run the same command again",
    "truncated": FETCH_AGAIN,
    "empty file": FETCH_AGAIN,
    "damaged": FETCH_AGAIN,
    "not a picture": NAMED_OTHERWISE,
    "not a sound": NAMED_OTHERWISE,
    "not a clip": NAMED_OTHERWISE,
    "no sound in it": "these clips are silent: an encoder of pictures or clips can take them",
    "no clip in it": "these files are sounds alone: an encoder of sounds can take them",
    "a clip, not a sound": "extract the sound first (ffmpeg -i clip.mp4 clip.wav), or take an encoder of clips",
    "no picture of it": "ready-made vectors have no thumbnail",
    "not a medium": "name files as --data",
    "too many pixels": "make the images smaller, or pass a larger --max-pixels",
    "too many bytes": "make the files smaller, or pass a larger --max-bytes",
    "too large for the memory": "make the files smaller, or pass a larger --max-memory, if this machine has more",
    "too long": "cut the sounds into parts, or pass --windows 0, which takes their start",
    "too long and thin": "crop the pictures: a side is 200 times the other",
    "32-bit pixels": SAVE_8_BITS,
    "floating-point pixels": SAVE_8_BITS,
    "not finite samples": "save these sounds again from where they come from",
    "implausible sample rate": "the headers of these sounds are damaged, or they are no sounds",
    "implausible number of channels": "the headers of these sounds are damaged, or they are no sounds",
    "preprocessing failed": "the encoder's own preprocessing can't take them: look at one of them",
    "beyond float16": "pass --precision fp32; if that doesn't help, this encoder's features don't fit float16",
    "not finite": "pass --precision fp32: the encoder overflows in half precision",
    "can't be made an MP3": "install an FFmpeg with libmp3lame",
    # motion
    "too few rows in the window": "the recording has a gap there, or ends before: leave these windows out",
    "not a recording of motion": "write the columns of Ego4D's IMU files into the first line",
    # ready-made vectors
    "empty array": "these arrays hold no vector: leave them out",
    "too many rows": "split the array into several files",
    "too many numbers": "store fewer patches of each medium",
    "not an array of numbers": "save the vectors as lists of numbers of one length",
    "not floating-point numbers": "save the vectors as float16, float32 or float64",
    "another shape": "encode vectors of one shape at a time",
    "lines don't match the rows": "write one line for each row",
    # files and folders
    "not found": "check --data",
    "missing file": "the words name media that aren't there: check --data and the paths in it",
    "no file named": "write the names of the media into the words",
    "several files of that name": "keep one of them, or name a smaller folder as --data",
    "outside the data folder": "name the folder that holds both the words and the media as --data",
    "a link out of the data folder": "copy the files in place of the links, or name the folder around both as --data",
    "an address, not a file": "download them first",
    "can't be opened": "check the permissions of the files",
    UNREAD: "the disk or the network failed: run the same command again",
    "can't be fetched": "check the network, and run the same command again",
    "empty cell": "these rows hold no medium: leave them out",
    # archives and tables
    "damaged archive": "download it again",
    KILLED: "something ended their decoder, as Linux does when memory is short: run the same command again",
    CRASH: "they may be made to do harm; they aren't opened again",
    "damaged .parquet": "download it again",
    "compressed archive": "unpack it to a plain .tar",
    "encrypted in the archive": "unpack it with its password",
    "compressed in a rare way": "unpack it",
    # words
    "words can't be read": "the file is cut or damaged, or in an encoding that can't be told: save it as UTF-8",
    "row can't be read": "mend the quotes and delimiters of these lines, or save the file as UTF-8",
    "bad line": LOOK,
    "bad line in a metadata file": LOOK,
    "bad line in the texts file": LOOK,
    "bad entry": LOOK,
    "bad conversation": LOOK,
}
BEGINS = {
    SLOW: "make the files smaller, or pass a larger --max-seconds",
    "img2dataset: ": "what couldn't be downloaded is left out; run img2dataset again for these",
}


def advice_for(reason: str) -> str:
    """What to do about media or words that were left out for this reason."""
    begun = (advice for begin, advice in BEGINS.items() if reason.startswith(begin))
    return ADVICE.get(reason) or next(begun, "look at rejected.jsonl")


def report_rejects(rows: Sequence[dict[str, str]], asked: int, dropped_texts: int) -> None:
    """Print how many media were left out and why.

    rows: the lines of rejected.jsonl · asked: number of media that were to be encoded · dropped_texts: texts that lost
    a medium.
    """
    counts = Counter(row["reason"] for row in rows)
    for reason, number in counts.most_common():
        if number > FREQUENT * asked and not reason.startswith(REASONS):
            print(f"warning: {number} of {asked} were left out for one reason, {reason!r}: {advice_for(reason)}")
    if rows:
        reasons = ", ".join(f"{number} {reason}" for reason, number in counts.most_common())
        print(f"{len(rows)} left out ({printable(reasons)}); rejected.jsonl lists them")
    if dropped_texts:
        print(f"{dropped_texts} texts were left out with their media")
