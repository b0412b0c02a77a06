"""What encoding will take on disk and in time, printed before it starts."""

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from periscope.console import spelled
from periscope.errors import FeatureSetError, PrecomputeError
from periscope.precompute.encoders.names import ENCODERS
from periscope.precompute.samples import describe_samples
from periscope.precompute.sources import Collection, Problem
from periscope.shards.layout import CODECS, settle_storage, stored_bytes
from periscope.units import format_bytes, format_duration

OVERHEAD = 2600  # bytes of tar headers, padding, json and safetensors header per medium, and its row in the index
FEW, SHOWN = 3, 20  # names in one line; lines of one kind
SPARE = 64 << 20  # left free on the disk
USUAL = {
    "image": "siglip2-b",
    "audio": "ast",
    "video": "siglip2-b",
    "imu": "imu2clip",
}  # an encoder for each kind of media


def describe_words(collection: Collection, options: Mapping[str, Any] | None = None, recipe: str = "") -> list[str]:
    """What is said of the words before anything is encoded: how many there are, of which split and by what sign, what
    isn't used and why, and three texts as they will be trained on. options: the `[train]` table of the `recipe`.
    """
    texts, media, unanswered = Counter[str](), defaultdict[str, set[str]](set), 0
    for words in collection.words:
        texts[words.split or ""] += 1
        media[words.split or ""].update(words.media)
        unanswered += all(turn["role"] != "assistant" for turn in words.turns)
    captioned = len(set().union(*media.values()).intersection(collection.media))
    lines = [f"words: {len(collection.words)} texts about {captioned} of {len(collection.media)} media"]
    if unanswered:
        lines.append(
            f"words: {unanswered} of these texts are questions without an answer, from which nothing is learnt"
        )
    for split, number in sorted(texts.items()):
        lines.append(_split(split, number, len(media[split]), collection.split_signs.get(split, [])))
    lines += describe_unused(collection)
    lines += describe_samples(collection, options or {}, recipe)
    if advice := without_words(collection):
        lines.append(advice)
    return lines


def describe_unused(collection: Collection) -> list[str]:
    """What is to be known of how the words were read, and what isn't used of the folder, with the reason."""
    lines = [f"note: {note}" for note in collection.notes[:SHOWN]]
    if len(collection.notes) > SHOWN:
        lines.append(f"note: and {len(collection.notes) - SHOWN} more of this kind")
    lines += _unused(collection.unused)
    lines += _passed(collection.passed)
    reasons: dict[str, list[Problem]] = defaultdict(list)
    for problem in collection.problems:
        reasons[problem.reason].append(problem)
    for reason, problems in sorted(reasons.items(), key=lambda row: -len(row[1])):
        first = problems[0]
        lines.append(f"rejected: {len(problems)} {reason}, e.g. {first.origin} ({first.detail or reason})")
    return lines


def _split(split: str, texts: int, media: int, signs: list[str]) -> str:
    more = f" and {len(signs) - FEW} more" if len(signs) > FEW else ""
    sign = f"by {', '.join(signs[:FEW])}{more}" if signs else "named in the words"
    if not split:
        sign = "some of these media are held out by their content"
    return f"split {split or 'none named'}: {texts} texts, {media} media ({sign})"


def _unused(unused: Mapping[str, str]) -> list[str]:
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, why in unused.items():
        groups[os.path.splitext(name)[1].lower(), why].append(name)
    lines = []
    for (end, why), names in sorted(groups.items(), key=lambda row: -len(row[1])):
        named = ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")
        lines.append(
            f"not used: {named}: {why}" if len(names) <= FEW else f"not used: {len(names)} {end}: {why} ({named})"
        )
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"not used: and {len(lines) - SHOWN} more kinds"]


def _passed(passed: Mapping[tuple[str, str], tuple[int, list[str]]]) -> list[str]:
    kinds = sorted(passed.items(), key=lambda row: -row[1][0])
    lines = []
    for (end, why), (count, first) in kinds[:SHOWN]:
        named = ", ".join(first) + (", ..." if count > len(first) else "")
        lines.append(f"passed over: {count} {end or 'without a suffix'}: {why} ({named})")
    return lines + [f"passed over: and {len(kinds) - SHOWN} more kinds"] * (len(kinds) > SHOWN)


def without_words(collection: Collection) -> str:
    """What to do about a set that has no text; "" where it has any."""
    if len(collection.words):
        return ""
    unused = f"{len(collection.unused)} files look" if len(collection.unused) > 1 else "1 file looks"
    tried = f" ({unused} like words, but can't be used: see above)" if collection.unused else ""
    return spelled(
        f"warning: no medium has words{tried}, and train.py can't use a set without them. Put cat.txt beside cat.jpg, "
        'or metadata.jsonl with lines {"file_name": "cat.jpg", "text": "A cat."} into the folder, and run the '
        "same command again: what is encoded stays. Or pass words to train.py --text FILE"
    )


def bytes_each(features: Mapping[str, dict]) -> dict[str, int]:
    """kind -> bytes per medium as stored. features: kind -> manifest entry."""
    return {kind: stored_bytes(entry) for kind, entry in features.items()}


def alternatives(features: Mapping[str, dict], views: int = 1) -> dict[str, int]:
    """Flags -> bytes per medium with them, largest first.

    features: kind -> manifest entry, as the encoder gives them. Tries fp16, int8 and int4, each unpooled and pooled 2x2
    and 3x3 where that divides the grid, and fewer kinds.
    """
    found = {}
    more = {"views": views} if views > 1 else {}
    for pool in ("1x1", "2x2", "3x3"):
        for codec in CODECS:
            try:
                entries = settle_storage(features, [codec], pool)
            except FeatureSetError:
                continue
            flags = f"--store {codec}" + (f" --pool {pool}" if pool != "1x1" else "")
            found[flags] = sum(stored_bytes(entry | more) for entry in entries.values())
    for number in range(1, len(features)):
        for kinds in combinations(features, number):
            found[f"--kinds {' '.join(kinds)}"] = sum(stored_bytes({**features[kind], **more}) for kind in kinds)
    return dict(sorted(found.items(), key=lambda row: -row[1]))


@dataclass(frozen=True)
class DiskPlan:
    """items: media to encode now · done: media already in the set · each: kind -> bytes per medium · free: bytes on the
    disk of `out` · seconds: estimate for all items · choices: flags -> bytes per medium with them, largest first, while
    there still is a choice.
    """

    items: int
    done: int
    each: dict[str, int]
    out: Path
    free: int
    seconds: float
    choices: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes to be written."""
        return self._total(sum(self.each.values()))

    def _total(self, each: int) -> int:
        return self.items * (each + OVERHEAD)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {format_bytes(n)}" for kind, n in self.each.items())
        done = f" ({self.done} more are there already)" if self.done else ""
        return (
            f"plan: {self.items} media to encode{done} · each {kinds} · {format_bytes(self.total)} in all, "
            f"{format_bytes(self.free)} free at {self.out} · about {format_duration(self.seconds)}"
        )

    def check(self) -> None:
        """Raise PrecomputeError when it won't fit on the disk, naming the largest choice that does; print them all."""
        if self.total + SPARE <= self.free:
            return
        smaller = {flags: self._total(each) for flags, each in self.choices.items() if self._total(each) < self.total}
        fitting = [flags for flags, total in smaller.items() if total + SPARE <= self.free]
        for flags, total in smaller.items():
            print(f"  {flags:<28}{format_bytes(total):>10}  {'fits' if flags in fitting else 'too much'}")
        mend = f"{fitting[0]} takes {format_bytes(smaller[fitting[0]])}; or choose " if fitting else "choose "
        needed = f"{format_bytes(self.total)}, and {format_bytes(SPARE)} to spare,"
        raise PrecomputeError(
            f"{needed} won't fit at {self.out}, which has {format_bytes(self.free)} free: {mend}a smaller --limit, or "
            "another disk with --out"
        )


def free_bytes(folder: Path) -> int:
    """Bytes available to this user on the disk of `folder`, which may not exist yet."""
    folder = Path(os.path.abspath(folder))
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def refuse_other_media(collection: Collection, name: str) -> None:
    """Raise PrecomputeError where an encoder with a short name surely takes none of the media, before it is loaded. Not
    for the default one where the media are ready-made vectors, which need none.
    """
    found = {medium.modality for medium in collection.media.values()}
    if name not in ENCODERS or (name == "demo" and found == {"vector"}):
        return
    modality = ENCODERS[name].modality
    takes = {"image": {"image", "video"}, "audio": {"audio", "video"}, "video": {"video", "image"}}.get(modality, found)
    if found and not found & takes:
        raise other_media(name, modality, found)


def other_media(name: str, modality: str, found: Iterable[str]) -> PrecomputeError:
    """What to raise for an encoder where there are only media of other modalities; names a usual encoder for these."""
    kinds = sorted(found)
    usual = next((f"; try --encoder {USUAL[kind]}" for kind in kinds if kind in USUAL), "")
    return PrecomputeError(
        f"--encoder {name} takes {modality} media and there are only {', '.join(kinds)} media here{usual}"
    )
