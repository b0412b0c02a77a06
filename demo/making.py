"""What the demo's sounds and clips share: splits, drawing questions, and writing a folder once."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
SPLITS = ("train", "heldout", "new_pairs")
HELDOUT_ONE_IN = 10


def split_by(pairs: Iterable[tuple[str, str]], new: bool, least: int = 2) -> str:
    """The split of a medium, from the pairs of words that describe its objects, in any order; the same for any seed.

    "new_pairs" if `new`; "heldout" if there are at least `least` objects and a hash of their pairs says so; else
    "train".
    """
    told = sorted(pairs)
    if new:
        return "new_pairs"
    digest = hashlib.sha256(json.dumps(told).encode()).digest()
    return "heldout" if len(told) >= least and int.from_bytes(digest[:8], "big") % HELDOUT_ONE_IN == 0 else "train"


def distinct_questions(
    forms: Collection[tuple[str, ...]],
    n: int,
    rng: random.Random,
    draw: Callable[[tuple[str, ...]], tuple[dict, str, str] | None],
) -> list[tuple[dict, str, str]]:
    """Up to `n` different questions as (ask, wording, answer), one of each form first, in random order; `draw` makes
    one of a form, or None where there is no answer to it."""
    drawn: list[tuple[dict, str, str]] = []
    waiting: list[tuple[str, ...]] = []
    for _ in range(8 * n):
        waiting = waiting or rng.sample(tuple(forms), len(forms))
        found = draw(waiting.pop())
        if found is not None and all(found[0] != other for other, _, _ in drawn):
            drawn.append(found)
            if len(drawn) == n:
                break
    return drawn


def lines_of(
    medium: str, split: str, meta: dict, captions: Iterable[str], questions: Iterable[tuple[dict, str, str]]
) -> Iterator[dict]:
    """The lines of texts.jsonl for one medium: captions, and questions with their `ask` in `meta`."""
    stem = Path(medium).stem
    common = {"media": [medium], "split": split}
    for number, text in enumerate(captions):
        turns = [{"role": "assistant", "content": text}]
        yield {"id": f"{stem}-caption-{number}", **common, "turns": turns, "meta": meta}
    for number, (ask, wording, truth) in enumerate(questions):
        turns = [{"role": "user", "content": wording}, {"role": "assistant", "content": truth}]
        yield {"id": f"{stem}-question-{number}", **common, "turns": turns, "meta": meta | {"ask": ask}}


def in_threads(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What `make` makes of each item, in order, by as many threads as there are cores."""
    threads = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from threads.map(make, items)
    finally:
        threads.shutdown(cancel_futures=True)


def make_folder(folder: Path, name: str, asked: dict, lines: Callable[[Path], Iterable[dict]]) -> Path:
    """Write `folder` with texts.jsonl from `lines(folder)`, and .`name`.json with the numbers asked for.

    The note's name begins with a dot, so that precompute doesn't take it for words. `lines` also writes the media into
    the folder it is given. A finished folder made with the same numbers is reused; one made with others raises
    ValueError. Everything is written under a temporary name and renamed at the end. Returns `folder`.
    """
    note, older = folder / f".{name}.json", folder / f"{name}.json"  # as version 0.1 called it
    if any(each.is_file() and json.loads(each.read_text()) == asked for each in (note, older)):
        return folder
    if folder.exists():
        raise ValueError(
            f"{folder} exists and holds something else than these {name}; remove it or name another folder"
        )
    waiting = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(waiting, ignore_errors=True)
    waiting.mkdir(parents=True)
    try:
        with (waiting / "texts.jsonl").open("w", encoding="utf-8") as texts:
            for line in lines(waiting):
                texts.write(json.dumps(line) + "\n")
        (waiting / note.name).write_text(json.dumps(asked) + "\n")
        os.rename(waiting, folder)
    except BaseException:
        shutil.rmtree(waiting, ignore_errors=True)
        raise
    return folder
