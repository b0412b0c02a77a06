"""Media at public addresses, for a server that was told to fetch them: never from a private network."""

import http.client
import ipaddress
import socket
import ssl
import time
from functools import partial
from urllib.parse import urljoin, urlsplit

from periscope.errors import RequestError
from periscope.serving.requests import Fetch

REDIRECTS = 3
SECONDS = 20.0  # for one address, redirections included
CHUNK = 1 << 16


def fetcher(most: int) -> Fetch:
    """A function from an http or https address to its bytes, of which there may be `most`."""
    return partial(fetch, most=most)


def fetch(address: str, most: int) -> bytes:
    """The bytes at a public address. Raises RequestError for a private one, and for what can't be fetched."""
    until = time.monotonic() + SECONDS
    for _ in range(REDIRECTS + 1):
        try:
            found = _get(address, most, until)
        except RequestError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RequestError(f"{address[:200]} can't be fetched: {error or type(error).__name__}") from None
        if isinstance(found, bytes):
            return found
        address = urljoin(address, found)
    raise RequestError(f"{address[:200]} redirects more than {REDIRECTS} times")


def _get(address: str, most: int, until: float) -> bytes | str:
    """The bytes at an address, or the address that it redirects to."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestError(f"{address[:200]} is no http or https address")
    connection = _connection(parts.scheme, parts.hostname, parts.port, until)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"User-Agent": "periscope", "Accept-Encoding": "identity"})
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308) and (place := response.getheader("Location")):
            return place
        if response.status != 200:
            raise RequestError(f"{address[:200]} answers with status {response.status}")
        data = bytearray()
        while chunk := response.read(CHUNK):
            data += chunk
            if len(data) > most:
                raise RequestError(f"{address[:200]} has more than {most:,} bytes (--max-upload)")
            if time.monotonic() > until:
                raise TimeoutError(f"it takes longer than {SECONDS:g} seconds")
        return bytes(data)
    finally:
        connection.close()


def _connection(scheme: str, host: str, port: int | None, until: float) -> http.client.HTTPConnection:
    """A connection to the public address that the name has now, so that it can't become another one in between."""
    secure = scheme == "https"
    number, left = port or (443 if secure else 80), max(0.1, until - time.monotonic())
    places = [place[4] for place in socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)]
    if not all(is_public(str(place[0])) for place in places):
        raise RequestError(f"{host} is in a private network, from which nothing is fetched")
    for place in places:
        try:
            opened = socket.create_connection((str(place[0]), number), timeout=left)
            break
        except OSError as error:
            trouble = error
    else:
        raise trouble
    connection = http.client.HTTPConnection(host, number, timeout=left)
    connection.sock = ssl.create_default_context().wrap_socket(opened, server_hostname=host) if secure else opened
    return connection


def is_public(address: str) -> bool:
    """Whether an IP address can be reached from anywhere."""
    return ipaddress.ip_address(address.partition("%")[0]).is_global
