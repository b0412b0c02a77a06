"""The names of splits in published datasets -> "train", "val", "test"."""

import os
import re

NAMES = {
    **dict.fromkeys(("train", "training", "restval", "development"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testdev", "evaluation", "eval"), "test"),
}


def split_named(name: object) -> str | None:
    """A source's name of a split -> "train", "val" or "test"; an unknown name is kept; None when there is none.

    Karpathy's "restval" is trained on, as in https://cs.stanford.edu/people/karpathy/deepimagesent/.
    """
    if not isinstance(name, str) or not name.strip():
        return None
    return NAMES.get(name.strip().lower(), name.strip())


def split_in(name: str) -> str | None:
    """The split in the name of a file or folder (`captions_train2017.json`: "train"); None for none or several."""
    found = {NAMES[word] for word in re.findall("[a-z]+", name.lower()) if word in NAMES}
    return found.pop() if len(found) == 1 else None


def split_of(path: str) -> str | None:
    """The split that a file belongs to by its path below the data folder: what its name says, else its folders'
    (`test/data.json`: "test"). Of folders that name several, the one that isn't trained on counts.
    """
    return split_in(os.path.basename(path)) or split_of_folder(os.path.dirname(path))


def split_of_folder(folder: str) -> str | None:
    """The split that the folders of a path name, as in Hugging Face's imagefolder
    (https://huggingface.co/docs/datasets/repository_structure): train, validation, test and their other names, alone
    or beside other words.
    """
    found = {split for part in folder.split("/") if (split := split_in(part))}
    return next((split for split in ("test", "val", "train") if split in found), None)
