"""Adapters on the Hugging Face Hub: made ready to be shared, pushed, fetched.

What leaves is what `stage` writes and nothing else; what comes in are the files named here and nothing else, and none
of them is run.
"""

import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from periscope.adapters.io.card import card, is_hub_id
from periscope.adapters.io.checkpoint import CARD, CONFIG, WEIGHTS, load_adapter, read_adapter_config
from periscope.adapters.lm.language_model import PROJECT, hub_in_reach
from periscope.adapters.lm.lora import CONFIG as LORA_CONFIG
from periscope.adapters.lm.lora import FOLDER as LORA
from periscope.adapters.lm.lora import WEIGHTS as LORA_WEIGHTS
from periscope.errors import AdapterError

FILES = (WEIGHTS, CONFIG, CARD, f"{LORA}/{LORA_WEIGHTS}", f"{LORA}/{LORA_CONFIG}")  # all that is ever fetched
PICTURE = "samples.png"
PATH = re.compile(
    r"(?<![^\s:+,;='\"`(\[|])(?:~[^\s/]*)?/(?!/)[^\s:+,;'\"`)\]|]+"
)  # an absolute one, also inside other words
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
    are given, the picture drawn anew. `lm` is the language model's hub id, where another name was trained with. Returns
    the files.

    Raises AdapterError when a path of this machine would still leave, and when the disk doesn't take it.
    """
    config = read_adapter_config(folder)
    trained_on = config["language_model"]["name"]
    config["language_model"]["name"] = lm or _without_path(trained_on)
    shipped = (PROJECT / trained_on).is_dir() and (PROJECT / trained_on).resolve().is_relative_to(PROJECT)
    own = [] if lm or is_hub_id(trained_on) or shipped else ["lm"]
    whole = config["encoder"]
    for part in ("encoder", "training"):
        config[part] = _without_paths(config[part])
    own += ["encoder"] if whole.get("id") != config["encoder"].get("id") else []
    adapter, _ = load_adapter(folder)
    maps = 0
    try:
        to.mkdir(parents=True)
        _save_bf16(folder / WEIGHTS, to / WEIGHTS)
        if (folder / LORA).is_dir():
            (to / LORA).mkdir()
            maps = _save_bf16(folder / LORA / LORA_WEIGHTS, to / LORA / LORA_WEIGHTS)
            fields = json.loads((folder / LORA / LORA_CONFIG).read_text(encoding="utf-8"))
            _write_json(to / LORA / LORA_CONFIG, fields | {"base_model_name_or_path": config["language_model"]["name"]})
        _write_json(to / CONFIG, config)
        numbers = sum(parameter.numel() for parameter in adapter.parameters())
        text = card(config, numbers, maps, repo, result, samples, license, datasets, own, PICTURE if picture else "")
        (to / CARD).write_text(text, encoding="utf-8")
        if picture:
            (to / PICTURE).write_bytes(_drawn_anew(picture))
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"what is to be shared can't be written to {to.parent}: {_first_line(error)}") from None
    files = sorted(path for path in to.rglob("*") if path.is_file())
    for path in files:
        _refuse_paths(path)
    return files


@dataclass(frozen=True)
class HubRepository:
    """What a name on the Hub already holds."""

    private: bool
    files: tuple[str, ...]


def standing(repo: str, private: bool = False) -> HubRepository | None:
    """What is on the Hub as `repo`, or None. Raises AdapterError for no name of the Hub's, when the Hub can't be
    reached, and when `private` is wanted of what all can see already: pushing there would make it public.
    """
    with _sentences(repo):
        validate_repo_id(repo)
        try:
            found = HfApi().model_info(repo)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
    if private and not found.private:
        raise AdapterError(
            f"{repo} is on the Hub already, for all to see, and --private doesn't change that: make it private on its "
            "page first, or choose another name"
        )
    return HubRepository(bool(found.private), tuple(sorted(one.rfilename for one in found.siblings or ())))


def push(staged: Path, repo: str, private: bool = False) -> str:
    """Upload a folder made by `stage`, making the repository if there is none; returns the commit. Files of an adapter
    that an earlier push left there and this one hasn't are removed.

    Raises AdapterError when the Hub refuses.
    """
    api = HfApi()
    with _sentences(repo, "write"):
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=staged,
            commit_message="Adapter by Periscope",
            delete_patterns=[*FILES, PICTURE],
        )
    return done.oid


def check_pushed(staged: Path, repo: str, commit: str, into: Path) -> Path:
    """Fetch what was pushed again, into the new folder `into`, which is returned: every file of an adapter must be what
    was staged, to the byte. Raises AdapterError otherwise.
    """
    again = fetch_adapter(repo, commit, into)
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
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = ADVICE.get(status, "") if what == "write" else ""
        raise AdapterError(f"the Hub refused to {what} {name}: {_first_line(error)}{advice}") from None
    except (OSError, TRANSPORT) as error:
        if isinstance(error, OSError) and (error.errno == errno.ENOSPC or error.filename):
            raise AdapterError(f"{name} can't be kept on this machine: {error}") from None
        again = "; the same command tries again" if what == "write" else ""
        raise AdapterError(f"{name} on the Hub can't be reached: {_first_line(error)}{again}") from None


LOG_IN = "; log in with a token that may write: hf auth login"
ADVICE = {401: LOG_IN, 403: LOG_IN, 409: "; somebody else is changing it: try again"}  # by HTTP status


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
    """Of a path that means something on this machine only the last part, also inside other words, as in
    "8/open_clip:/data/clip"; anything else as it is.
    """
    if os.path.isabs(text) or text.startswith(("~", "..")):
        return Path(text).name
    return PATH.sub(lambda found: Path(found[0]).name, text)


def _refuse_paths(path: Path) -> None:
    """Raise AdapterError when a text file to be shared names the home, the current folder, or any other path that there
    is on this machine.
    """
    if path.suffix not in (".json", ".md"):
        return
    text = path.read_text(encoding="utf-8")
    shown = [folder for folder in (str(Path.home()), str(Path.cwd())) if folder != "/" and folder + "/" in text]
    shown += [found for found in PATH.findall(text) if Path(found).parent != Path("/") and _is_here(Path(found))]
    if shown:
        raise AdapterError(f"{path.name} would show a path of this machine ({shown[0]}); nothing was pushed")


def _is_here(path: Path) -> bool:
    try:
        return path.expanduser().exists()
    except (OSError, RuntimeError):
        return False


def _drawn_anew(picture: Path) -> bytes:
    """A picture as PNG, without whatever else its file may hold."""
    stream = io.BytesIO()
    with Image.open(picture) as image:
        image.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _write_json(path: Path, value: Mapping) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
