"""The texts of a feature set: one JSON object per line, read on demand.

Rows in the form of LLaVA-Pretrain ask for a caption with one of a few requests and answer with the caption. Which of
them are read as captions is decided here, once for everything that reads texts.
"""

import json
import re
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from periscope.errors import FeatureSetError
from periscope.positions import read_at

ROLES = ("system", "user", "assistant")
BOM = b"\xef\xbb\xbf"
LINE = 1 << 10  # bytes read at once; most lines are shorter
MARKS = re.compile("<(?:image|video|audio)>")
# The requests for a brief description in LLaVA's pretraining data (arXiv 2304.08485, its list of instructions for brief
# image description), as `_plainly` writes them.
CAPTION_REQUESTS = frozenset(
    {
        "describe the image concisely",
        "provide a brief description of the given image",
        "offer a succinct explanation of the picture presented",
        "summarize the visual content of the image",
        "give a short and clear explanation of the subsequent image",
        "share a concise interpretation of the image provided",
        "present a compact description of the photo's key features",
        "relay a brief, clear account of the picture shown",
        "render a clear and concise summary of the photo",
        "write a terse but informative summary of the picture",
        "create a compact narrative representing the image presented",
    }
)


@dataclass(frozen=True)
class Text:
    """One text: id, keys of its media in order, turns of {"role", "content"}, split, and further facts.

    request: the user turn that asked for a caption, where the text was read as one (see `Texts.with_captions`); it is
    left out of `turns`.
    """

    id: str
    media: tuple[str, ...]
    turns: tuple[dict, ...]
    split: str
    meta: dict = field(default_factory=dict)
    request: str = ""

    def row(self) -> dict:
        """The text as a line of a texts file holds it."""
        turns = [{"role": "user", "content": self.request}] * bool(self.request) + list(self.turns)
        return {"id": self.id, "media": self.media, "turns": turns, "split": self.split, "meta": self.meta}


def caption_request(turns: Sequence[Mapping], media: int, every: bool = False) -> str | None:
    """What asks for the caption in a single exchange about one medium: one of LLaVA's requests for a brief description,
    or with `every` any words. None for a text of another form.
    """
    if media != 1 or [turn["role"] for turn in turns] != ["user", "assistant"]:
        return None
    asked = turns[0]["content"]
    return asked if every or _plainly(asked) in CAPTION_REQUESTS else None


def without_marks(words: str) -> str:
    """Words without the marks of media in them, nor space at their ends."""
    return MARKS.sub("", words).strip()


def _plainly(words: str) -> str:
    """Words as requests are compared: without marks, in lower case, with plain apostrophes, single spaces and no full
    stop.
    """
    return " ".join(without_marks(words).replace("\u2019", "'").lower().split()).rstrip(".")


def splits_in(path: Path, heldout: frozenset[str]) -> Iterator[str]:
    """The split of each text about a medium in a file, in order, see `Texts.find`. Raises as it does."""
    texts = Texts(path, {})
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip(BOM).strip() and (row := texts._parse(line, number))["media"]:
                yield _split_of(row, heldout)


def _split_of(row: Mapping, heldout: frozenset[str]) -> str:
    return row["split"] or ("heldout" if heldout.intersection(row["media"]) else "train")


class Texts(Sequence[Text]):
    """The texts of a file, read on demand; 14 bytes per text stay in memory. A slice and the result of `pick` are
    `Texts` too. Safe to share between threads and to send to processes.

    path: the file · names: name of a medium in the file -> its key, where they differ.
    """

    def __init__(self, path: Path, names: Mapping[str, str]):
        """Open the file; `find` selects texts. Raises FeatureSetError when there is no such file."""
        if not path.is_file():
            wrong = "is a folder" if path.is_dir() else "doesn't exist"
            raise FeatureSetError(f"{path} {wrong}; name a file with one JSON text per line")
        self.path, self._name, self._names = path, str(path), names
        self._begins, self._numbers, self._split, self._splits = array("q"), array("I"), array("H"), list[str]()
        self._rows: Sequence[int] = range(0)
        self._captions = ""
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115

    def find(self, known: Container[str], heldout: frozenset[str]) -> tuple[int, str]:
        """Select the texts whose media are all `known`. Returns (number of other texts, the first unknown medium). A
        text without a split is "heldout" if one of its media is. Raises FeatureSetError on a malformed line.
        """
        unknown, first, begin = 0, "", 0
        splits: dict[str, int] = {}
        with open(self.path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                start, begin = begin, begin + len(line)
                if not line.strip(BOM).strip():
                    continue
                row = self._parse(line, number)
                if missing := [name for name in row["media"] if name not in known]:
                    first, unknown = first or missing[0], unknown + 1
                    continue
                split = _split_of(row, heldout)
                self._begins.append(start)
                self._numbers.append(number)
                self._split.append(splits.setdefault(split, len(splits)))
        self._splits, self._rows = list(splits), range(len(self._begins))
        return unknown, first

    def pick(self, positions: Iterable[int]) -> "Texts":
        """The texts at these positions, in their order."""
        picked = object.__new__(Texts)
        picked.__dict__.update(self.__dict__, _rows=array("I", (self._rows[i] for i in positions)))
        return picked

    def with_captions(self, which: str) -> "Texts":
        """These texts, with rows in the form of LLaVA-Pretrain read as captions: their turns are the caption alone, and
        `request` is what asked for it.

        which: "requested" for those with one of LLaVA's requests, "all" for every single exchange about one medium, ""
        for none.
        """
        read = self.pick(range(len(self)))
        read._captions = which
        return read

    def of_split(self, *splits: str) -> "Texts":
        """The texts of these splits."""
        wanted = {number for number, name in enumerate(self._splits) if name in splits}
        return self.pick(i for i, row in enumerate(self._rows) if self._split[row] in wanted)

    @property
    def splits(self) -> set[str]:
        """The names of the splits of these texts."""
        return {self._splits[number] for number in {self._split[row] for row in self._rows}}

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Text: ...

    @overload
    def __getitem__(self, place: slice) -> "Texts": ...

    def __getitem__(self, place: int | slice) -> "Text | Texts":
        if isinstance(place, slice):
            return self.pick(range(*place.indices(len(self))))
        row = self._rows[place]
        text = self._parse(self._line(self._begins[row]), self._numbers[row])
        turns, request = tuple(text["turns"]), None
        if self._captions:
            request = caption_request(turns, len(text["media"]), self._captions == "all")
        if request is not None:
            turns = turns[1:]
        return Text(
            text["id"], tuple(text["media"]), turns, self._splits[self._split[row]], text["meta"], request or ""
        )

    def _parse(self, line: bytes, number: int) -> dict:
        row = parse_text(line.removeprefix(BOM), f"{self._name}, line {number}", default_id=f"line-{number}")
        if self._names:
            row["media"] = [self._names.get(name, name) for name in row["media"]]
        return row

    def _line(self, begin: int) -> bytes:
        size = LINE
        while True:
            block = read_at(self._file.fileno(), size, begin)
            end = block.find(b"\n")
            if end >= 0 or len(block) < size:
                return block[: end if end >= 0 else None]
            size *= 4

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _file=open(state["path"], "rb", buffering=0))  # noqa: SIM115


def parse_text(line: str | bytes, where: str, default_id: str) -> dict:
    """One line of a texts file -> {"id", "media", "turns", "split" or None, "meta"}, with every field validated.

    Raises FeatureSetError naming `where`.
    """
    try:
        row = json.loads(line if isinstance(line, str) else line.decode())
    except (ValueError, RecursionError) as error:
        raise FeatureSetError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise FeatureSetError(f"{where}: a text is a JSON object with media and turns")
    media, turns = row.get("media", []), row.get("turns")
    media = [media] if isinstance(media, str) else media
    if not isinstance(media, list) or not all(isinstance(name, str) for name in media):
        raise FeatureSetError(f"{where}: media must be a list of names")
    if not isinstance(turns, list) or not turns:
        raise FeatureSetError(f'{where}: turns must be a list of {{"role", "content"}}')
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise FeatureSetError(f"{where}: each turn needs a role ({', '.join(ROLES)}) and a content that is text")
    split, meta = row.get("split"), row.get("meta") or {}
    if not (split is None or (isinstance(split, str) and split)) or not isinstance(meta, dict):
        raise FeatureSetError(f"{where}: split must be a word and meta an object")
    turns = [{"role": turn["role"], "content": turn["content"]} | _boxes(turn, where) for turn in turns]
    return {"id": str(row.get("id", default_id)), "media": media, "turns": turns, "split": split, "meta": meta}


def _boxes(turn: dict, where: str) -> dict:
    """{"boxes": [[left, top, right, bottom], ...]} of a turn that has some."""
    boxes = turn.get("boxes") or []
    if not isinstance(boxes, list) or any(
        not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box)
        for box in boxes
    ):
        raise FeatureSetError(f"{where}: boxes must be a list of [left, top, right, bottom], shares of the picture")
    return {"boxes": boxes} if boxes else {}
