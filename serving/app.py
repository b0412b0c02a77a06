"""The web application: who may ask, what is read of a request, and how the answer is sent."""

import asyncio
import logging
import sys
import time
from asyncio import CancelledError
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from periscope.errors import RequestError
from periscope.serving.access import admit
from periscope.serving.engine import Engine, Event, Usage
from periscope.serving.replies import DONE, Reply, listing, refusal
from periscope.serving.requests import ChatRequest, read_request

UPLOAD_SECONDS = 120  # in which a request's body must arrive, since others wait for its place
log = logging.getLogger("uvicorn.error")


def make_app(engine: Engine, token: str = "", uploads: Path | None = None) -> FastAPI:
    """The application around an engine.

    token: what clients must send. Without one, a request must name this machine as `is_loopback` knows it, so that no
    page of another site can ask through a browser by a name of its own · uploads: the folder for what is uploaded on
    the page at `/`; None for no page.
    """
    app = FastAPI(title="Periscope", docs_url=None, redoc_url=None, openapi_url=None)
    created = int(time.time())

    async def words() -> Response:
        return PlainTextResponse(
            "Periscope answers at /v1/chat/completions, in OpenAI's form; /v1/models lists models.\n"
        )

    @app.get("/health")
    async def health() -> Response:
        return PlainTextResponse("ok\n")

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        admit(request.headers, token)
        return _json(listing(engine.models, created))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        admit(request.headers, token)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError("the request must be application/json", 415)
        return ChatResponse(engine, request)

    @app.exception_handler(RequestError)
    @app.exception_handler(Exception)
    async def refuse(_: Request, error: Exception) -> Response:
        return _refused(error)

    if uploads is None:
        app.add_api_route("/", words)
        return app
    from periscope.serving.page import mount_page

    return mount_page(app, engine, token, uploads)


def ended_at_shutdown(app: ASGIApp) -> ASGIApp:
    """The application, but that what shutdown or a second Ctrl-C cuts off ends, where uvicorn would log a traceback.
    An open page listens until it is closed.
    """

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            if not (message["type"] == "lifespan.shutdown.failed" and isinstance(sys.exception(), CancelledError)):
                await send(message)

        try:
            await app(scope, receive, noted)
        except CancelledError:
            if scope["type"] != "http":
                return
            with suppress(Exception):  # a body that was to have a certain length can't be ended
                if begun:
                    await send({"type": "http.response.body", "body": b""})
                else:
                    await _refused(RequestError("the server is stopping", 503))(scope, receive, send)

    return answered


class ChatResponse(Response):
    """A request's whole way, from reading its body to the last piece of the answer, in one place of the queue."""

    def __init__(self, engine: Engine, request: Request):
        self.engine, self.request, self.background = engine, request, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine, request = self.engine, self.request
        _refuse_length(request.headers.get("content-length", ""), engine.limits.max_upload)
        try:
            async with engine.place():
                asked = read_request(await _body(request, engine.limits.max_upload))
                engine.model(asked.model)
                async with aclosing(engine.answer(asked)) as events:
                    response = await _unless_gone(_response(asked, events), request)
                    await response(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody reads what could be said


async def _response(asked: ChatRequest, events: AsyncGenerator[Event]) -> Response:
    """The answer at once, or a stream from the first piece on; before that, a refusal has a status of its own."""
    pieces: list[str] = []
    async for event in events:
        if isinstance(event, Exception):
            return _refused(event)
        if asked.stream:
            return StreamingResponse(
                _stream(asked, event, events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        if isinstance(event, Usage):
            return _json(Reply(asked.model).whole("".join(pieces), event))
        pieces.append(event)
    raise AssertionError("an answer without an end")


async def _stream(asked: ChatRequest, event: Event, events: AsyncGenerator[Event]) -> AsyncGenerator[bytes]:
    """Server-sent events: an answer from its first event on."""
    reply = Reply(asked.model)
    yield _sent(reply.begin())
    while isinstance(event, str):
        yield _sent(reply.piece(event))
        event = await anext(events)
    if isinstance(event, Usage):
        yield _sent(reply.end(event))
        if asked.with_usage:
            yield _sent(reply.usage(event))
    else:
        yield _sent(_told(event)[1])
    yield f"data: {DONE}\n\n".encode()


async def _unless_gone(work: Coroutine[Any, Any, Response], request: Request) -> Response:
    """What `work` gives. Raises ClientDisconnect, and ends it, when the client hangs up before."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(request))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        response = tasks[0].result()
        assert response is not None
        return response
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    """Wait until the client hangs up; its request is read already."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, most: int) -> bytes:
    """The body. Raises RequestError for one that is too long or takes too long, ClientDisconnect for half a one."""
    body = bytearray()
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for chunk in request.stream():
                body += chunk
                _refuse_length(str(len(body)), most)
    except TimeoutError:
        raise RequestError(f"the request didn't arrive within {UPLOAD_SECONDS} seconds", 408) from None
    return bytes(body)


def _refuse_length(length: str, most: int) -> None:
    if length.isdecimal() and int(length) > most:
        raise RequestError(f"the request has {int(length):,} bytes; at most {most:,} are read (--max-upload)", 413)


def _told(error: Exception) -> tuple[int, dict[str, Any]]:
    """What is told of an exception; a bug goes into the log."""
    status, told = refusal(error)
    if status == 500:
        log.error("a request failed", exc_info=error)
    return status, told


def _refused(error: Exception) -> Response:
    status, told = _told(error)
    return _json(told, status)


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _sent(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
