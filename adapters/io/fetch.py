"""Fetching adapters from the Hugging Face Hub. Only the files listed here are downloaded, and none of them is run.

Imports no torch, so that a wrong name is refused at once.
"""

from pathlib import Path

from huggingface_hub import snapshot_download

from periscope import hub_repo
from periscope.adapters.names import CARD, CONFIG, LORA, LORA_CONFIG, LORA_WEIGHTS, WEIGHTS
from periscope.errors import AdapterError
from periscope.hub_repo import hub_reachable

COUNTED = "config.json"  # the Hub counts a repository's downloads by the requests for this file
FILES = (WEIGHTS, CONFIG, CARD, COUNTED, f"{LORA}/{LORA_WEIGHTS}", f"{LORA}/{LORA_CONFIG}")  # all that is downloaded


def fetch_adapter(name: str, revision: str | None = None, into: Path | None = None) -> Path:
    """Download the Hub's adapter `name` (owner/name) into the Hub's cache, or into `into`, and return its folder.

    Only the files of an adapter folder are requested, by name. Raises AdapterError when there is no such adapter, or
    when the Hub can't be reached and the cache doesn't hold all of it.
    """
    offline = into is None and not hub_reachable()
    with hub_repo.sentences(name, AdapterError, repo=name):
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(FILES),
                local_dir=into,
                local_files_only=offline,
            )
        )
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if missing and offline:
        raise AdapterError(
            f"{name} isn't here whole ({missing[0]} wasn't fetched), and {hub_repo.unreachable()}{hub_repo.TRY_AGAIN}"
        )
    if CONFIG in missing:
        raise AdapterError(f"{name} on the Hub holds no {CONFIG}, so it is no adapter of this project")
    if missing:
        raise AdapterError(f"{name} on the Hub lacks {WEIGHTS}; tell whoever shared it")
    return folder
