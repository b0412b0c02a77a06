"""The Hugging Face Hub, as adapters and feature sets use it: what stands there, uploads, errors in one sentence."""

import errno
import hashlib
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import DatasetInfo, HfApi, ModelInfo, get_token
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

from periscope.errors import UserError, first_line
from periscope.paths import check_place

CARD = "README.md"
# An absolute path, also inside other text.
PATH = re.compile(r"(?<![^\s:+,;='\"`(\[|])(?:~[^\s/]*)?/(?!/)[^\s:+,;'\"`)\]|]+")
TRANSPORT: Any = HfHubHTTPError.__mro__[1]  # the base error of the Hub's HTTP library, which has changed twice
LOG_IN = "; log in with a token that may write: hf auth login"
TRY_AGAIN = "; the same command tries again"
BUSY = "; it has had too many requests: wait, and run the same command again"
# What to do, by HTTP status.
READING = {401: "; your token isn't valid: hf auth login", 403: "; ask its owner for access", 429: BUSY}
WRITING = {401: LOG_IN, 403: LOG_IN, 409: "; somebody else is changing it: try again", 429: BUSY}
Kind = Literal["model", "dataset"]
# What to do with a repository of the other kind than the one that was wanted.
OTHERWISE: dict[Kind, str] = {
    "model": "is a dataset, not an adapter; a feature set is trained on: periscope train --features hf://{}",
    "dataset": "is a model, not a dataset; an adapter is asked: periscope ask {} FILE QUESTION",
}


@dataclass(frozen=True)
class HubRepository:
    """A repository that exists on the Hub."""

    private: bool
    files: tuple[str, ...]


def hub_offline() -> bool:
    """Whether the user's environment forbids asking the Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub_reachable() -> bool:
    """Whether the Hub answers within three seconds; its own library would try for half a minute."""
    if hub_offline():
        return False
    host, _ = address = hub_address()
    scheme = "http" if os.environ.get("HF_ENDPOINT", "").startswith("http:") else "https"
    proxy = urlsplit(getproxies().get(scheme, ""))
    if proxy.hostname and not proxy_bypass(host):
        address = (proxy.hostname, proxy.port or 80)
    try:
        socket.create_connection(address, timeout=3).close()
    except OSError:
        return False
    return True


def hub_address() -> tuple[str, int]:
    """The Hub's host and port."""
    scheme, _, rest = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rpartition("//")
    host, _, port = rest.split("/")[0].partition(":")
    return host, int(port or (80 if scheme == "http:" else 443))


def unreachable() -> str:
    """That the Hub can't be reached, and what to do where nobody asked it yet."""
    if hub_offline():
        return "the Hub isn't asked, because HF_HUB_OFFLINE is set: unset it"
    return f"the Hub ({hub_address()[0]}) can't be reached: connect"


def check_push(to: str, error: type[UserError]) -> None:
    """Raise `error` for what isn't of the form owner/name, without a token, and where the Hub can't be reached: before
    the work that a push takes.
    """
    check_place(to, error)
    with sentences(to, error):
        validate_repo_id(to)
    if not get_token():
        raise error(f"pushing to {to} takes a token of the Hub that may write: hf auth login")
    if not hub_reachable():
        raise error(f"nothing can be pushed to {to}: {unreachable()}, and run the same command again")


def standing(repo: str, private: bool, error: type[UserError], kind: Kind = "model") -> HubRepository | None:
    """The Hub's repository `repo`, or None.

    Raises `error` for a name that is none of the Hub's, when the Hub can't be reached, and when `private` is asked for
    but the repository is public: what is pushed there would be public.
    """
    with sentences(repo, error):
        validate_repo_id(repo)
        try:
            dataset = kind == "dataset"
            info: DatasetInfo | ModelInfo = HfApi().dataset_info(repo) if dataset else HfApi().model_info(repo)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
    if private and not info.private:
        raise error(
            f"{repo} is on the Hub already, for all to see, and --private doesn't change that: make it private on its "
            "page first, or choose another name"
        )
    return HubRepository(bool(info.private), tuple(sorted(file.rfilename for file in info.siblings or ())))


def upload(
    folder: Path,
    repo: str,
    private: bool,
    owned: Sequence[str],
    message: str,
    error: type[UserError],
    kind: Kind = "model",
) -> str:
    """Upload a folder, creating the repository if needed; return the commit id.

    owned: patterns of what is deleted there where the folder doesn't have it. Raises `error` when the Hub refuses.
    """
    api = HfApi()
    with sentences(repo, error, "write"):
        api.create_repo(repo, private=private, exist_ok=True, repo_type=kind)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message, delete_patterns=list(owned), repo_type=kind
        )
    return commit.oid


@contextmanager
def sentences(
    name: str,
    error: type[UserError],
    what: Literal["read", "write"] = "read",
    again: Callable[[], str] = lambda: TRY_AGAIN,
    repo: str = "",
    kind: Kind = "model",
) -> Iterator[None]:
    """Turn errors of the Hub's library into an `error` of one sentence. again: its end where the network failed · repo,
    kind: owner/name, and which of the Hub's kinds it is meant to be.
    """
    try:
        yield
    except (HFValidationError, LocalEntryNotFoundError, OSError, TRANSPORT) as reason:
        raise error(_sentence(reason, name, what, again(), repo, kind)) from None


def _sentence(reason: BaseException, name: str, what: str, again: str, repo: str, kind: Kind) -> str:
    """What went wrong with `name`, and what to do."""
    if isinstance(reason, HFValidationError):
        return f"{name!r} is no name of the Hub's, which are owner/name"
    if isinstance(reason, LocalEntryNotFoundError | OfflineModeIsEnabled):
        if not isinstance(reason.__cause__, HfHubHTTPError):
            return f"{name} is not here, and {unreachable()}{again}"
        reason = reason.__cause__  # what the Hub said when it was asked for the file
    if isinstance(reason, GatedRepoError):
        return f"{name} on the Hub asks you to accept its terms first, on its page; then log in: hf auth login"
    if isinstance(reason, RevisionNotFoundError):
        return f"{name} on the Hub has no such revision: {first_line(reason)}"
    if isinstance(reason, RepositoryNotFoundError):
        if repo and _exists_as("dataset" if kind == "model" else "model", repo):
            return f"{repo} on the Hub {OTHERWISE[kind].format(repo)}"
        return f"{name} is neither here nor on the Hub (or it is private: hf auth login)"
    if isinstance(reason, HfHubHTTPError):
        status = getattr(getattr(reason, "response", None), "status_code", None) or 0
        advice = (WRITING if what == "write" else READING).get(status, again if status >= 500 else "")
        return f"the Hub refused to {what} {name}: {first_line(reason).rstrip('.: ')}{advice}"
    if isinstance(reason, OSError) and (reason.errno == errno.ENOSPC or reason.filename):
        return f"{name} can't be kept on this machine: {reason}{again}"
    return f"{name} on the Hub can't be reached: {first_line(reason)}{again}"


def _exists_as(kind: Kind, repo: str) -> bool:
    """Whether there is a repository of that kind; False where that can't be known."""
    api = HfApi()
    try:
        return bool(api.dataset_info(repo) if kind == "dataset" else api.model_info(repo))
    except (OSError, TRANSPORT, HFValidationError):
        return False


def upload_lines(
    to: str, private: bool, staged: Path, names: Sequence[str], there: HubRepository | None, removed: Sequence[str]
) -> list[str]:
    """What would be uploaded: each of the staged files with its size; and which files of `there`, the repository on the
    Hub, would be replaced or, as far as they are among `removed`, removed.
    """
    private = there.private if there else private
    lines = [f"to be uploaded to {to} ({'private' if private else 'public'}):"]
    lines += [f"  {name:<32}{(staged / name).stat().st_size:>14,} bytes" for name in names]
    if there and (old := [name for name in there.files if name in names]):
        lines.append(f"the repository exists, and these files would be replaced: {', '.join(old)}")
    if there and (old := [name for name in removed if name in there.files]):
        lines.append(f"these files of an earlier push would be removed: {', '.join(old)}")
    return lines


def card_lines(staged: Path) -> list[str]:
    """The card that would be uploaded, indented."""
    return [f"{CARD}:", *(f"  | {line}" for line in (staged / CARD).read_text(encoding="utf-8").split("\n"))]


def for_terminal(lines: Sequence[str]) -> str:
    """Lines with control characters shown as "?"."""
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def without_paths(value: Any) -> Any:
    """JSON values without the paths of this machine in their strings, which keep the last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return without_path(value) if isinstance(value, str) else value


def without_path(text: str) -> str:
    """The last part of a path of this machine, also inside other text as in "8/open_clip:/data/clip"; anything else
    unchanged.
    """
    if os.path.isabs(text) or text.startswith(("~", "..")):
        return Path(text).name
    return PATH.sub(lambda match: Path(match[0]).name, text)


def refuse_paths(path: Path, error: type[UserError]) -> None:
    """Raise `error` when a text file to be shared names the home, the current folder or another path that is here."""
    if path.suffix not in (".json", ".md", ".yaml"):
        return
    text = path.read_text(encoding="utf-8")
    shown = [folder for folder in (str(Path.home()), str(Path.cwd())) if folder != "/" and folder + "/" in text]
    shown += [match for match in PATH.findall(text) if Path(match).parent != Path("/") and _exists(Path(match))]
    if shown:
        raise error(f"{path.name} would show a path of this machine ({shown[0]}); nothing was pushed")


def _exists(path: Path) -> bool:
    try:
        return path.expanduser().exists()
    except (OSError, RuntimeError):
        return False


def git_sha1(data: bytes) -> str:
    """The name that git gives a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
