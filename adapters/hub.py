"""Adapters on the Hugging Face Hub: made ready to be shared, pushed, fetched.

What leaves is what `stage` writes and nothing else; what comes in are the files named here and nothing else, and none
of them is run.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file

from adapters import AdapterError
from adapters.card import card
from adapters.checkpoint import CARD, CONFIG, WEIGHTS, load_adapter, read_adapter_config
from adapters.language_model import hub_in_reach
from adapters.lora import CONFIG as LORA_CONFIG
from adapters.lora import FOLDER as LORA
from adapters.lora import WEIGHTS as LORA_WEIGHTS

FILES = (WEIGHTS, CONFIG, CARD, f"{LORA}/{LORA_WEIGHTS}", f"{LORA}/{LORA_CONFIG}")  # all that is ever fetched
PICTURE = "samples.png"
TRANSPORT = HfHubHTTPError.__mro__[1]  # what the Hub's HTTP library raises; which library has changed twice


def fetch_adapter(name: str, revision: str | None = None, into: Path | None = None) -> Path:
    """The folder of the Hub's adapter `name` (owner/name): in the Hub's cache, or downloaded anew to `into`.

    Only the files of an adapter folder are asked for, by name. Raises AdapterError when the Hub has none such, or can't
    be reached and it isn't in the cache.
    """
    with _sentences(name):
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(FILES),
                local_dir=into,
                local_files_only=into is None and not hub_in_reach(),
            )
        )
    if not (folder / CONFIG).is_file():
        raise AdapterError(f"{name} on the Hub holds no {CONFIG}, so it is no adapter of this project")
    return folder


def stage(
    folder: Path,
    to: Path,
    repo: str,
    result: Mapping | None = None,
    samples: Sequence[Mapping] = (),
    picture: Path | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    lm: str | None = None,
) -> list[Path]:
    """Write what is to be shared of an adapter folder into `to`: weights in bf16, adapter.json without paths of this
    machine, the card with the scores of `result`, LoRA as it is but for bf16; `samples` and `picture` only where they
    are given. `lm` is the language model's hub id, where another name was trained with. Returns the files.

    Raises AdapterError when a path of this machine would still leave.
    """
    config = read_adapter_config(folder)
    config["language_model"]["name"] = lm or _without_path(config["language_model"]["name"])
    for part in ("encoder", "training"):
        config[part] = _without_paths(config[part])
    adapter, _ = load_adapter(folder)
    to.mkdir(parents=True)
    _save_bf16(folder / WEIGHTS, to / WEIGHTS)
    maps = 0
    if (folder / LORA).is_dir():
        (to / LORA).mkdir()
        maps = _save_bf16(folder / LORA / LORA_WEIGHTS, to / LORA / LORA_WEIGHTS)
        fields = json.loads((folder / LORA / LORA_CONFIG).read_text(encoding="utf-8"))
        _write_json(to / LORA / LORA_CONFIG, fields | {"base_model_name_or_path": config["language_model"]["name"]})
    _write_json(to / CONFIG, config)
    numbers = sum(parameter.numel() for parameter in adapter.parameters())
    text = card(config, numbers, maps, repo, result, samples, license, datasets)
    (to / CARD).write_text(text, encoding="utf-8")
    if picture:
        shutil.copyfile(picture, to / PICTURE)
    files = sorted(path for path in to.rglob("*") if path.is_file())
    for path in files:
        _refuse_paths(path)
    return files


def push(staged: Path, repo: str, private: bool = False) -> str:
    """Upload a folder made by `stage`, making the repository if there is none; returns the commit.

    Raises AdapterError when the Hub refuses.
    """
    api = HfApi()
    with _sentences(repo, "write"):
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=staged, commit_message="Adapter by Periscope")
    return done.oid


def check_pushed(staged: Path, repo: str, commit: str) -> Path:
    """Fetch what was pushed again, into a new temporary folder, which is returned: every file of an adapter must be
    what was staged, to the byte. Raises AdapterError otherwise.
    """
    again = fetch_adapter(repo, commit, Path(tempfile.mkdtemp(prefix="periscope-")))
    for name in FILES:
        if (staged / name).is_file() and _sha256(staged / name) != (
            _sha256(again / name) if (again / name).is_file() else ""
        ):
            raise AdapterError(f"{repo} was pushed, but {name} comes back as something else: push it again")
    return again


@contextmanager
def _sentences(name: str, what: str = "read") -> Iterator[None]:
    """What the Hub's library raises, as one sentence."""
    try:
        yield
    except HFValidationError:
        raise AdapterError(f"{name!r} is no name of the Hub's, which are owner/name") from None
    except GatedRepoError:
        raise AdapterError(f"{name} on the Hub asks you to accept its terms first, on its page") from None
    except RevisionNotFoundError as error:
        raise AdapterError(f"{name} on the Hub has no such revision: {_first_line(error)}") from None
    except RepositoryNotFoundError:
        raise AdapterError(f"{name} is neither here nor on the Hub (or it is private: hf auth login)") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise AdapterError(f"{name} is not here, and the Hub can't be reached") from None
    except HfHubHTTPError as error:
        login = "; log in with a token that may write: hf auth login" if what == "write" else ""
        raise AdapterError(f"the Hub refused to {what} {name}: {_first_line(error)}{login}") from None
    except (OSError, TRANSPORT) as error:
        raise AdapterError(f"{name} on the Hub can't be reached: {_first_line(error)}") from None


def _save_bf16(source: Path, target: Path) -> int:
    """Copy weights in bf16; returns how many numbers."""
    tensors = load_file(source)
    small = {name: value.bfloat16() if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(small, target, metadata={"format": "pt"})
    return sum(value.numel() for value in tensors.values())


def _without_paths(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    return _without_path(value) if isinstance(value, str) else value


def _without_path(text: str) -> str:
    """The last part of a path that means something on this machine only; anything else as it is."""
    return Path(text).name if os.path.isabs(text) or text.startswith("~") else text


def _refuse_paths(path: Path) -> None:
    """Raise AdapterError when a text file to be shared names the home or the current folder."""
    if path.suffix not in (".json", ".md"):
        return
    text = path.read_text(encoding="utf-8")
    for folder in {str(Path.home()), str(Path.cwd())} - {"/"}:
        if folder + "/" in text:
            raise AdapterError(f"{path.name} would show a path of this machine ({folder}/...); nothing was pushed")


def _write_json(path: Path, value: Mapping) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
