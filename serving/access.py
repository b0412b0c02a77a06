"""Who may ask: this machine alone, or whoever has the token."""

import hmac
import importlib.util
import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from periscope.errors import RequestError, RunError
from periscope.evaluation.config import ServeConfig

TOKEN = "PERISCOPE_TOKEN"


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, which no other reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def checked_token(config: ServeConfig) -> str:
    """The token that clients must send; "" for none.

    Raises RunError for a server that others reach without one, and where FastAPI or uvicorn isn't installed.
    """
    if not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")):
        raise RunError("periscope serve needs FastAPI and uvicorn: pip install 'periscope-adapters[serve]'")
    token = config.token or os.environ.get(TOKEN, "")
    if not token and not is_loopback(config.host):
        raise RunError(
            f"--host {config.host} can be reached from other machines: set a secret that clients send as their API "
            f"key, in {TOKEN} or with --token"
        )
    return token


def admit(headers: Mapping[str, str], token: str) -> None:
    """Raise RequestError for a request without the token, or where there is none, for one to another machine's name:
    a page of another site may reach this server through a browser, but only by a name of its own.
    """
    if token:
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise RequestError("the API key isn't this server's token", 401)
        return
    try:
        name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        name = ""
    if not is_loopback(name):
        raise RequestError(f"this server answers to localhost, and the request is to {name!r}", 403)
