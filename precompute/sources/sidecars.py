"""Files of words beside their media: `cat.txt`, `cat.jpg.txt`, `cat.caption`, `cat.json`, `captions/cat.txt`, and one
for each language, `cat.en.txt`.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from periscope.precompute.media import modality_of
from periscope.precompute.sources import Problem, Words
from periscope.precompute.sources.conversations import MISSING, caption, words_of
from periscope.precompute.sources.data_folder import HEAD, DataFolder, composed
from periscope.precompute.sources.tables import row_in
from periscope.precompute.sources.text_file import DAMAGED, captions_in

ENDS = (".txt", ".caption", ".json")
FOLDERS = ("captions", "caption", "texts", "text", "txt", "descriptions", "transcripts")
BOXES = re.compile(r"\d+(\s+[-+\d.eE]+){4,}")  # YOLO's labels, a class and the numbers of a box
# https://www.loc.gov/standards/iso639-2/php/code_list.php, those of two letters
CODES = frozenset(
    re.findall(
        "..",
        "aaabafakamanarasavayazbabebgbhbibmbnbobrbscacechcocrcscucvcydadedvdzeeeleneoes"
        "eteufafffifjfofrfygagdglgngugvhahehihohrhthuhyhziaidieigiiikioisitiujajvkakgki"
        "kjkkklkmknkokrkskukvkwkylalblglilnloltlulvmgmhmimkmlmnmrmsmtmynanbndnengnlnnno"
        "nrnvnyocojomorospapiplpsptqurmrnrorurwsascsdsesgsiskslsmsnsosqsrssstsusvswtate"
        "tgthtitktltntotrtstttwtyugukuruzvevivowawoxhyiyozazhzu",
    )
)
MARKED = re.compile(r"([a-z]{2,3}(?:[_-][A-Za-z]{2,4})?(?:@\w+)?)(?:\.(?i:utf-?8))?\s*=\s*(.+)")
MANY_LANGUAGES = 5  # that are named


@dataclass(frozen=True)
class Sidecar:
    """name: of the file · language: a code, or "" where its name has none."""

    name: str
    language: str = ""


class Sidecars:
    """The files of words beside the media of a folder.

    names: all files · media: those that are media.
    """

    def __init__(self, data: DataFolder, names: Sequence[str], media: Sequence[str]):
        self.data = data
        self.files: dict[str, str] = {}
        stems = {composed(os.path.splitext(name)[0]) for name in media}
        self.marked: dict[str, list[Sidecar]] = {}
        for name in names:
            stem, end = os.path.splitext(name)
            if end.lower() not in ENDS:
                continue
            stem = composed(stem)
            self.files.setdefault(stem + end.lower(), name)
            base, mark, code = stem[:-3], stem[-3:-2], stem[-2:]
            if mark in (".", "_", "-") and code.lower() in CODES and stem not in stems and base in stems:
                self.marked.setdefault(base, []).append(Sidecar(name, code.lower()))
        self.places = {os.path.dirname(key) for key in self.files}
        self.languages = Counter[str]()
        self.lacking = 0

    def of(self, medium: str) -> list[str]:
        """The files beside a medium, the one whose words count first; one of the same folder before others."""
        path = composed(medium)
        stem = os.path.splitext(path)[0]
        folder, base = os.path.split(stem)
        above = os.path.dirname(folder)
        keys = [begin + end for end in ENDS for begin in (stem, path)]
        for other in FOLDERS:
            for place in sorted({os.path.join(above, other), os.path.join(folder, other)} & self.places - {folder}):
                keys += [os.path.join(place, begin) + end for end in ENDS for begin in (base, os.path.basename(path))]
            if folder and above != folder:  # captions/train/cat.txt for images/train/cat.jpg
                twin = os.path.join(os.path.dirname(above), other, os.path.basename(folder))
                keys += [os.path.join(twin, base) + end for end in ENDS] if twin in self.places else []
        found = [self.files[key] for key in dict.fromkeys(keys) if key in self.files]
        return list(dict.fromkeys(found))

    def pass_over(self, medium: str, why: str) -> None:
        """Note why the files beside a medium aren't used."""
        stem = composed(os.path.splitext(medium)[0])
        for name in (*self.of(medium), *(sidecar.name for sidecar in self.marked.get(stem, ()))):
            if name not in self.data.used:
                self.data.unused[name] = why

    def words(self, medium: str, split: str | None) -> Iterator[Words | Problem]:
        """The texts beside a medium: of the first file that has any."""
        stem = composed(os.path.splitext(medium)[0])
        candidates = [Sidecar(name) for name in self.of(medium)]
        candidates += self.marked.get(stem, [])
        used = ""
        for sidecar in candidates:
            if used and not sidecar.language:
                self.data.unused.setdefault(sidecar.name, f"{os.path.basename(used)} has the words of its medium")
                continue
            found = list(self._read(medium, sidecar, split))
            if any(isinstance(record, Words) for record in found):
                self.data.used.add(sidecar.name)
                self.data.unused.pop(sidecar.name, None)
                used = used or sidecar.name
            elif sidecar.name not in self.data.used:
                why = found[0].detail if found and isinstance(found[0], Problem) else "no words in it"
                self.data.unused.setdefault(sidecar.name, why)
            yield from found

    def _read(self, medium: str, sidecar: Sidecar, split: str | None) -> Iterator[Words | Problem]:
        try:
            text = self.data.small_text(sidecar.name, self._contents)
        except OSError as error:
            yield Problem(medium, "words can't be read", f"{sidecar.name}: {error}")
            return
        if sidecar.name.lower().endswith(".json"):
            row = row_in(text)
            if row is None:
                yield Problem(medium, "words can't be read", f"{sidecar.name} isn't JSON of words")
            else:
                yield from words_of(row, (medium,), sidecar.name, split)
            return
        lines = captions_in(text)
        if lines and all(map(BOXES.fullmatch, lines)):
            self.data.unused[sidecar.name] = "numbers of boxes, no words"
            return
        if sidecar.name.lower().endswith(".caption"):  # one caption, which may be broken into lines
            lines = [" ".join(lines)] if lines else []
        for line in lines:
            if DAMAGED in line:
                number = next(n for n, other in enumerate(text.split("\n"), 1) if DAMAGED in other)
                yield Problem(medium, "words can't be read", f"{sidecar.name}, line {number}: bytes that are no text")
                return
        for line in self._of_language([line for line in lines if line not in MISSING], sidecar.language):
            yield Words((medium,), caption(line), split)

    def _contents(self) -> Iterator[bytes]:
        for name in self.files.values():
            with suppress(OSError), self.data.open(name) as stream:
                yield stream.read(HEAD)

    def _of_language(self, lines: list[str], of_file: str) -> list[str]:
        """The captions among the lines of a file, those of the wanted language if one is wanted. Lines like `fr=Un
        chat.` say their language; those without are English where others do (Tux Paint's stamps).
        """
        marks = [MARKED.fullmatch(line) for line in lines]
        several = any(mark and mark[1][:2].lower() in CODES for mark in marks[1:]) or (
            bool(lines) and all(mark and mark[1][:2].lower() in CODES for mark in marks)
        )
        told = []
        for line, mark in zip(lines, marks, strict=True):
            if several and mark:
                told.append((mark[1].lower().replace("-", "_"), mark[2]))
            else:
                told.append((of_file or ("en" if several else ""), line))
        self.languages.update(list(dict.fromkeys(language for language, _ in told if language)))
        wanted = self.data.language.lower().replace("-", "_")
        if not wanted:
            return [words for _, words in told]
        kept = [words for language, words in told if not language or language == wanted]
        kept = kept or [words for language, words in told if language.split("_")[0] == wanted]
        self.lacking += bool(told) and not kept
        return kept

    def finish(self) -> None:
        """Note what the files show of languages, and which stand beside no medium."""
        if len(self.languages) > 1 or (self.languages and self.marked):
            common = [f"{name} {count}" for name, count in self.languages.most_common(MANY_LANGUAGES)]
            others = f" and {len(self.languages) - len(common)} more" if len(self.languages) > len(common) else ""
            taken = (
                f"--language {self.data.language} is taken" if self.data.language else "all are taken; see --language"
            )
            self.data.note(f"files beside the media hold several languages ({', '.join(common)}{others}): {taken}")
        if self.data.language and self.lacking:
            self.data.note(f"{self.lacking} files of words have none in {self.data.language}")
        for name in self.files.values():
            if name not in self.data.used and not modality_of(name):
                self.data.unused.setdefault(name, "no medium of its name")
