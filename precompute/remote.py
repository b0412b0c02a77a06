"""Data at a remote address, through fsspec: s3://, gs://, hf://, https:// and others.

Annotations, and whatever else isn't a medium, are copied into a temporary folder; media appear there as empty files.
Layouts are therefore recognised as on a local disk, and each medium is fetched by the process that decodes it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.media import modality_of, read_file
from periscope.precompute.sources import Collection, collect
from periscope.units import format_bytes

NOTABLE = 100_000_000  # bytes; copies larger than this are announced


def is_address(data: Path | str) -> bool:
    """Whether `--data` names an address rather than a path (pathlib makes s3:/bucket of s3://bucket)."""
    scheme, colon, rest = str(data).partition(":")
    return bool(colon) and scheme.isalnum() and len(scheme) > 1 and scheme != "pipe" and rest.startswith("/")


def address_of(data: Path | str) -> str:
    """The address with its two slashes, however pathlib left it; three for a scheme without a host."""
    scheme, _, rest = str(data).partition(":")
    return f"{scheme}://{'/' if scheme in ('file', 'local') else ''}{rest.lstrip('/')}"


def read_address(address: str, _: Path) -> bytes:
    """The bytes behind an address. Raises MediaError when they can't be had."""
    import fsspec

    try:
        with fsspec.open(address, "rb") as stream:
            return stream.read()
    except Exception as error:  # each protocol's library raises its own
        raise MediaError("can't be fetched", f"{type(error).__name__}: {error}") from error


@contextmanager
def collected(data: Path | str, language: str = "") -> Iterator[Collection]:
    """As `sources.collect`, for a path or an address; what was copied from there exists while the block runs.

    Raises PrecomputeError when the protocol's library is missing, the address can't be listed, or holds no media.
    """
    if not is_address(data):
        yield collect(Path(data), language)
        return
    address = address_of(data)
    with TemporaryDirectory(prefix="precompute-") as here:
        addresses = _mirror(address, Path(here))
        single = len(addresses) == 1 and "" in addresses
        found = collect(Path(here, PurePosixPath(address).name) if single else Path(here), language)
        for origin, medium in found.media.items():
            if medium.part is read_file:
                path = Path(os.path.relpath(medium.path, here)).as_posix()
                found.media[origin] = replace(medium, part=partial(read_address, addresses[path]))
        yield found


def _mirror(address: str, here: Path) -> dict[str, str]:
    """Mirror `address` in `here`, media as empty files. Returns path in it -> address ("" for a single file)."""
    import fsspec

    try:
        files, root = fsspec.url_to_fs(address)
        single = files.isfile(root)
        listed = {root: files.info(root)} if single else files.find(root, detail=True)
    except ImportError as error:
        raise PrecomputeError(f"--data {address}: {error}") from error
    except Exception as error:  # each protocol's library raises its own
        raise PrecomputeError(f"--data {address} can't be listed ({type(error).__name__}: {error})") from error
    if not listed:
        raise PrecomputeError(f"--data {address} holds nothing, or doesn't exist")
    base = root.rsplit("/", 1)[0] if single else root.rstrip("/")
    addresses = {"": address} if single else {}
    for name, info in listed.items():
        path = name.removeprefix(base).lstrip("/")
        target = Path(os.path.normpath(here / path))
        if not target.is_relative_to(here) or target == here:
            continue
        addresses[path] = files.unstrip_protocol(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if modality_of(path):
            target.touch()
            continue
        if (info.get("size") or 0) > NOTABLE:
            print(f"copying {path} ({format_bytes(info['size'])}) from {address}")
        try:
            files.get_file(name, str(target))
        except Exception as error:  # each protocol's library raises its own
            raise PrecomputeError(f"{addresses[path]} can't be fetched ({type(error).__name__}: {error})") from error
    return addresses
