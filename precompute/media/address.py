"""A medium at an http or https address that the caller of the Python API named."""

import http.client
import re
import time
import urllib.error
import urllib.request

from periscope.errors import MediaError
from periscope.precompute.media.limits import check_bytes, limits

WEB = re.compile(r"(?i)https?://")
SECONDS = 60.0  # for one medium
QUIET = 20.0  # without a byte
CHUNK = 1 << 16


def is_web_address(medium: object) -> bool:
    """Whether a medium is named by a string with an http or https address."""
    return isinstance(medium, str) and WEB.match(medium) is not None


def read_web_address(address: str) -> bytes:
    """The bytes at an http or https address, whatever network it is in: who calls chose it.

    Raises MediaError when they can't be had within a minute, or are more than the limits allow.
    """
    until = time.monotonic() + SECONDS
    data = bytearray()
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "periscope"})
        with urllib.request.urlopen(request, timeout=QUIET) as answer:
            while len(data) <= limits().bytes and (chunk := answer.read(CHUNK)):
                data += chunk
                if time.monotonic() > until:
                    raise TimeoutError(f"it takes longer than {SECONDS:g} seconds")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MediaError("can't be fetched", _why(error)) from error
    check_bytes(len(data))
    return bytes(data)


def _why(error: Exception) -> str:
    """What was wrong, without what urllib writes around it."""
    reason = getattr(error, "reason", None)
    if isinstance(error, urllib.error.HTTPError) or not reason:
        return str(error) or type(error).__name__
    return (reason.strerror if isinstance(reason, OSError) else None) or str(reason)
