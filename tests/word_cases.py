"""Small folders as people have them, with every text they must give, for tests."""

import io
import json
import tarfile
import wave
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from periscope.precompute.plan import describe_words
from periscope.precompute.sources import Collection, collect

Texts = list[tuple[str, tuple[str, ...], str | None]]  # medium, contents of the turns, split


@dataclass(frozen=True)
class Case:
    """files: name -> content · media: number of pictures 0.jpg, 1.jpg, ... beside them · texts: all that must come out
    problems: reason and what its detail must hold · said: what the plan must hold · given: the file given as --data.
    """

    files: dict[str, bytes | str | object]
    texts: Texts
    media: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    said: tuple[str, ...] = ()
    given: str = ""


def png(number: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, 90, 200)).save(stream, "PNG")
    return stream.getvalue()


def beep(rate: int = 8000) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setparams((1, 2, rate, 0, "NONE", ""))
        sound.writeframes(b"\0\1" * 800)
    return stream.getvalue()


def webm() -> bytes:
    """Sound alone, as browsers record it."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="webm") as container:
        track = container.add_stream("libopus", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return stream.getvalue()


def tar(**members: bytes | str) -> bytes:
    return tar_of({name.replace("__", "."): content for name, content in members.items()})


def tar_of(members: dict[str, bytes | str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def parquet(**columns: list) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def cells(count: int) -> list[dict]:
    return [{"bytes": png(n), "path": None} for n in range(count)]


def write(folder: Path, case: Case) -> Path:
    for name, content in {**{f"{n}.jpg": png(n) for n in range(case.media)}, **case.files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes | str) else json.dumps(content)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder / case.given


def said(found: Collection) -> Texts:
    return sorted((text.media[0], tuple(turn["content"] for turn in text.turns), text.split) for text in found.words)


def check(case: Case, data: Path) -> Collection:
    """Read a folder, compare all that comes out with what must, and give it back."""
    found = collect(data)
    assert said(found) == sorted(case.texts)
    details = [(problem.reason, problem.detail) for problem in found.problems]
    assert len(details) == len(case.problems), details
    for reason, detail in case.problems:
        assert any(reason in ("", other) and detail in text for other, text in details), details
    told = "\n".join(describe_words(found))
    assert all(words in told for words in case.said), told
    assert all(medium.read() for medium in found.media.values())
    return found
