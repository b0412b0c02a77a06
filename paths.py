"""Folders that several packages need."""

import difflib
import hashlib
import os
from pathlib import Path

from periscope.errors import UserError

PACKAGE = Path(__file__).resolve().parent


def tiny_folder() -> Path:
    """Where `--tiny` keeps its random models, in the user's cache: one folder per version of their code."""
    sources = [PACKAGE / name for name in ("adapters/lm/tiny.py", "precompute/tiny_encoders.py")]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "periscope" / f"tiny-{digest[:8]}"


def expanded(path: Path | str) -> Path:
    """A path with `~` for the home folder and `~name` for another user's; as it is where there is no such folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user, or no home folder
        return Path(path)


def meant(folder: Path, name: str) -> str:
    """ "; did you mean ...?" with what is called most like `name` in `folder`; "" where nothing is."""
    there = [place.name for place in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(Path(name).name, there, 1)
    return f"; did you mean {folder / near[0]}?" if near else ""


def check_place(to: str, error: type[UserError]) -> None:
    """Raise `error` for what isn't of the form owner/name."""
    if to.count("/") != 1 or not all(to.split("/")) or ":" in to:
        raise error(f"{to} is no place to push to: name an owner and a repository, as in owner/name")
