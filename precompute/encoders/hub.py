"""Whether a model is cached or can be downloaded, found out before a library spends half a minute on it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from periscope.errors import PrecomputeError
from periscope.paths import expanded
from periscope.precompute.encoders.folders import find_folder
from periscope.precompute.encoders.names import ENCODERS

SECONDS = 10
DOWNLOAD = "download it once on a machine with a network, then pass its folder as --encoder"


@contextmanager
def no_remote_code() -> Iterator[None]:
    """Within, transformers refuses a model that brings code of its own, where it would ask on standard input.

    For libraries that call it without `trust_remote_code=False`.
    """
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def check_within_reach(name: str) -> None:
    """Raise PrecomputeError for an encoder of the Hub that is neither cached nor available, as far as its name tells;
    before torch is imported, which takes seconds.
    """
    full = ENCODERS[name].encoder if name in ENCODERS else name
    library, colon, identifier = full.partition(":")
    if "+" in full or find_folder(identifier if colon else full) is not None:
        return
    if library == "transformers" or (not colon and full.count("/") == 1):
        reach(identifier or full, ("config.json",))
    elif library in ("open_clip", "timm") and not _anything_cached() and not _hub_reachable():
        raise PrecomputeError(f"encoder {name} isn't on this machine and the Hub can't be reached; {DOWNLOAD}")


def _hub_reachable() -> bool:
    from periscope.hub_repo import hub_reachable  # takes a while to import

    return hub_reachable()


def _anything_cached() -> bool:
    """Whether this machine keeps any model of the Hub, or weights that open_clip fetched from elsewhere."""
    from huggingface_hub.constants import HF_HUB_CACHE

    beside = (Path("~/.cache/clip"), Path("~/.cache/torch/hub/checkpoints"))
    return any(Path(HF_HUB_CACHE).glob("models--*")) or any(expanded(place).is_dir() for place in beside)


def reach(repo: str, *needed: tuple[str, ...]) -> tuple[bool, str | None]:
    """(whether a Hub repository is cached, its revision). Cached means: one file of each tuple in `needed`.

    Raises PrecomputeError at once when it is neither cached nor available: no network, no such model, no access.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        paths = [[try_to_load_from_cache(repo, file) for file in files] for files in needed]
        found = [next((path for path in group if isinstance(path, str)), None) for group in paths]
        if found[0] is not None and all(found):
            return True, os.path.basename(os.path.dirname(found[0]))
    except HFValidationError as error:
        raise PrecomputeError(f"--encoder {repo}: not a possible name of a model on the Hub ({error})") from error
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise PrecomputeError(
            f"encoder {repo} isn't on this machine and HF_HUB_OFFLINE forbids to fetch it; {DOWNLOAD}"
        )
    try:
        return False, HfApi().model_info(repo, timeout=SECONDS).sha
    except GatedRepoError as error:
        raise PrecomputeError(
            f"encoder {repo} asks for a licence: accept it on its page, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise PrecomputeError(f"the Hub knows no model {repo}; check the spelling") from error
    except HfHubHTTPError as error:
        raise PrecomputeError(f"the Hub doesn't give {repo} ({str(error).splitlines()[0]})") from error
    except Exception as error:  # the HTTP library's own errors differ between versions
        raise PrecomputeError(
            f"encoder {repo} isn't on this machine and the Hub can't be reached; {DOWNLOAD}"
        ) from error
