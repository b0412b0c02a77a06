"""How feature sets on the Hub are named: hf://owner/name, hf://datasets/owner/name, both also with @revision.

Imports nothing large: command lines are checked with it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from periscope.errors import FeatureSetError

ROOT = Path("features")
START = re.compile(r"hf:/*", re.I)  # pathlib makes one slash of several
ADDRESS = re.compile(r"https?:/{1,2}(?:www\.)?(?:huggingface\.co|hf\.co)/", re.I)  # of a page of the Hub
WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
PLACE = re.compile(rf"(?:datasets/)?({WORD}/{WORD})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")


@dataclass(frozen=True)
class HubSet:
    """A feature set on the Hub: its repository, owner/name, and a branch, tag or commit ("" for the newest)."""

    repo: str
    revision: str = ""

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")

    @property
    def folder(self) -> Path:
        """Where it is fetched to. The Hub has no names with two hyphens, so no other repository has this one."""
        return ROOT / self.repo.replace("/", "--")


def is_hub_set(name: object) -> bool:
    """Whether a name, or what pathlib made of it, is meant for a feature set on the Hub."""
    return any(start.match(str(name)) for start in (START, ADDRESS))


def hub_set(name: object) -> HubSet:
    """The feature set that a name is of. Raises FeatureSetError for a name of another form."""
    text = str(name)
    match = PLACE.fullmatch(START.sub("", text, count=1).rstrip("/"))
    if match is None or "--" in match[1] or ".." in text or ADDRESS.match(text):
        raise FeatureSetError(
            f"{name} is no name of a feature set on the Hub: those are written as hf://owner/name, or "
            "hf://owner/name@REVISION"
        )
    return HubSet(match[1], match[2] or "")


def hint(name: object) -> str:
    """The end of a sentence about a feature set that isn't here: what makes one, or the name of one on the Hub, where
    that may be meant.
    """
    plain = PLACE.fullmatch(str(name))
    if plain and str(name).startswith(f"{ROOT}/"):
        return "; make one first: python precompute.py --data FOLDER"
    return f"; one on the Hub is named hf://{plain[1]}" if plain else ""


def parted(name: str) -> tuple[str, str]:
    """What --features is given, as (name, "=weight" or "")."""
    place, equals, weight = name.partition("=")
    return place, equals + weight
