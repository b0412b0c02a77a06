"""Encoders that lie in a folder, and how their place is written down."""

import os
from pathlib import Path

from periscope.paths import PACKAGE


def find_folder(identifier: str) -> Path | None:
    """The folder at this path, relative to the current folder or else to Periscope's own (for the demo's encoders);
    None when there is none.
    """
    for folder in (Path(os.path.expanduser(identifier)), PACKAGE / identifier):
        if identifier and folder.is_dir():
            return folder
    return None


def portable(identifier: str) -> str:
    """How a manifest names an encoder: a folder by its path relative to Periscope's if it lies inside, else by its
    absolute path; anything else as it is.
    """
    folder = find_folder(identifier)
    if folder is None:
        return identifier
    folder = folder.resolve()
    return folder.relative_to(PACKAGE).as_posix() if folder.is_relative_to(PACKAGE) else str(folder)
