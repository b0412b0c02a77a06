"""Stands before the page: the API's rules for the requests that Gradio answers.

The same token or the same loopback names, the same size of uploads, and nothing fetched from elsewhere. Of Gradio's
many routes only those pass that a conversation needs. A browser sends the token as the password of HTTP's own login.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from periscope.errors import RequestError
from periscope.serving.access import admit
from periscope.serving.replies import refusal

OURS = re.compile(r"/(v1/.*|health)")  # answered by the application itself, which has the same rules
READ = re.compile(
    r"/(config|favicon\.ico|theme\.css|manifest\.json|robots\.txt|(assets|static)/.*|gradio_api/"
    r"(info|config|app_id|startup-events|queue/data|upload_progress|theme\.css|heartbeat/[A-Za-z0-9_-]+"
    r"|file=(?![A-Za-z][A-Za-z0-9+.-]+:).*))?/?"
)
WRITE = re.compile(r"/gradio_api/(upload|queue/join|cancel|reset)/?")
JOIN = re.compile(r"/gradio_api/queue/join/?")
# The page asks for nothing elsewhere, whatever an answer says. Gradio's own scripts are inline and use eval.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class PageGuard:
    """An ASGI application around another. token, uploads: as in `make_app` · most: bytes of a request."""

    def __init__(self, app: ASGIApp, token: str, uploads: Path, most: int):
        self.app, self.token, self.uploads, self.most = app, token, uploads.resolve(), most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or OURS.fullmatch(scope["path"]):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            self._admit(scope, headers)
            receive = _Counted(receive, self.most)
            if JOIN.fullmatch(scope["path"]):
                receive = await _read_event(receive, self.uploads)
        except RequestError as error:
            return await _refused(error)(scope, receive, send)
        await self._answer(scope, receive, send)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        admit(as_bearer(headers), self.token)
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != headers.get("host"):
            raise RequestError(f"the request comes from a page of another site, {origin[:200]}", 403)
        allowed = WRITE if scope["method"] == "POST" else READ
        if scope["method"] not in ("GET", "HEAD", "POST") or not allowed.fullmatch(scope["path"]):
            raise RequestError("there is nothing here", 404)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.most:
            raise _too_long(self.most)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The page's answer; or a refusal, where a body turns out to be too long before the answer began."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            if begun and isinstance(error.__cause__, HTTPException):  # which Gradio has told the page in its stream
                await send({"type": "http.response.body", "body": b""})
            elif not getattr(receive, "full", False):
                raise
        if getattr(receive, "full", False) and not begun:
            await _refused(_too_long(self.most))(scope, receive, send)


class _Counted:
    """Receives a request until it has too many bytes; from then on it looks hung up, and `full` is true."""

    def __init__(self, receive: Receive, most: int):
        self._receive, self._left, self.full = receive, most, False

    async def __call__(self) -> Message:
        if self.full:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        self.full = self._left < 0
        return {"type": "http.disconnect"} if self.full else message


async def _read_event(receive: _Counted, uploads: Path) -> Receive:
    """What receives an event's body again, after a look at it. Raises RequestError where it names a file that wasn't
    uploaded, since a mounted Gradio fetches addresses and reads any file of this machine; and for a body that is too
    long or no JSON.
    """
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise RequestError("the request is too long, or ended early", 413)
        body += message.get("body", b"")
        more = message.get("more_body", False)
    try:
        event = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise RequestError("the request isn't JSON") from None
    if not all(path.resolve().is_relative_to(uploads) for path in named_files(event)):
        raise RequestError("only uploaded files are read: upload the file itself")
    waiting: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def named_files(value: Any) -> Iterator[Path]:
    """The paths of the files in an event's data."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            if isinstance(path := value.get("path"), str):
                yield Path(path.replace("\0", ""))
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def as_bearer(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers with the password of HTTP's login, which browsers send, as the API's token."""
    given = headers.get("authorization", "")
    if given[:6].lower() == "basic ":
        try:
            given = "Bearer " + base64.b64decode(given[6:], validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            given = ""
    return {"authorization": given, "host": headers.get("host", "")}


def _too_long(most: int) -> RequestError:
    return RequestError(f"the request has more than the {most:,} bytes that are read (--max-upload)", 413)


def _refused(error: RequestError) -> Response:
    status, told = refusal(error)
    headers = {"WWW-Authenticate": 'Basic realm="Periscope: the password is the token"'} if status == 401 else None
    return Response(msgspec.json.encode(told), status, headers, media_type="application/json")
