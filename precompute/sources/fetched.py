"""Data that is downloaded before it is read: `hf:owner/name` and `pipe:COMMAND`."""

import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from periscope.errors import PrecomputeError

SECONDS = 10  # to wait for the Hub's first answer
CACHE = "~/.cache/periscope"  # where no XDG_CACHE_HOME says otherwise


def fetched(path: Path | str) -> Path | str:
    """The local copy of a dataset on the Hub or behind a command; any other path is returned unchanged.

    `hf:owner/name`, or `hf:owner/name/folder`, is a dataset repository on the Hugging Face Hub, kept in its cache;
    private ones need `hf auth login`. `pipe:COMMAND` is a shell command that prints a webdataset tar; with
    `{00000..00009}` in it, one per number, as in https://github.com/webdataset/webdataset. These tars are kept in the
    user's cache folder, because media are read by position, and so that a stopped run needn't fetch them again.

    Raises PrecomputeError when the data can't be fetched.
    """
    text = str(path)
    if text.startswith("hf:") and "://" not in text and not text.startswith("hf:/"):
        return _from_hub(text.removeprefix("hf:"))
    if text.startswith("pipe:"):
        return _from_pipe(text.removeprefix("pipe:"))
    return path


def _from_hub(name: str) -> Path:
    owner, _, rest = name.partition("/")
    repo, _, folder = rest.partition("/")
    if not owner or not repo:
        raise PrecomputeError(f"--data hf:{name} isn't hf:owner/name")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    repo = f"{owner}/{repo}"
    wanted: dict[str, Any] = {"repo_type": "dataset", "allow_patterns": [f"{folder.rstrip('/')}/*"] if folder else None}
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    try:
        if not offline:
            HfApi().dataset_info(repo, timeout=SECONDS)
        return Path(snapshot_download(repo, local_files_only=offline, **wanted), folder)
    except HFValidationError as error:
        raise PrecomputeError(f"--data hf:{name} isn't a possible name on the Hub ({error})") from error
    except GatedRepoError as error:
        raise PrecomputeError(f"{repo} asks for a licence: accept it on its page, then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise PrecomputeError(f"the Hub knows no dataset {repo}; check the spelling") from error
    except HfHubHTTPError as error:
        raise PrecomputeError(f"the Hub doesn't give {repo} ({str(error).splitlines()[0]})") from error
    except Exception as error:  # the HTTP library's own errors differ between versions
        why = "HF_HUB_OFFLINE forbids to fetch it" if offline else "the Hub can't be reached"
        raise PrecomputeError(
            f"{repo} isn't on this machine and {why}; fetch it where there is a network with "
            f"`hf download --repo-type dataset {repo}`, and pass the folder as --data"
        ) from error


def _from_pipe(pattern: str) -> Path:
    from braceexpand import braceexpand  # webdataset's own dependency, for the same notation

    pattern = re.sub(r"\b([a-z][a-z0-9+.]*):/(?=[^/])", r"\1://", pattern)  # a Path has lost the second slash
    try:
        commands = list(braceexpand(pattern))
    except ValueError:
        commands = [pattern]
    name = f"pipe-{hashlib.sha256(pattern.encode()).hexdigest()[:16]}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser(CACHE), name)
    folder.mkdir(parents=True, exist_ok=True)
    for number, command in enumerate(commands):
        tar = folder / f"{number:05d}.tar"
        if tar.exists():
            continue
        partly = tar.with_suffix(".partly")
        print(f"fetching {tar} from: {command}")
        with partly.open("wb") as stream:
            code = subprocess.run(command, shell=True, stdout=stream).returncode
        if code or not partly.stat().st_size:
            partly.unlink()
            raise PrecomputeError(f"the command of --data gave no tar (exit code {code}): {command}")
        partly.replace(tar)
    return folder
