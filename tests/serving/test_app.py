"""`periscope serve` asked by the official client and by others, with a tiny model, in this process."""

import asyncio
import base64
import io
import json
import struct
import sys
import threading
import zlib

import pytest
import tiny
from PIL import Image

import periscope
from periscope import cli
from periscope.errors import RequestError
from periscope.evaluation.config import ServerLimits
from periscope.serving import access
from periscope.serving.engine import READ_AT_ONCE, Engine

pytest.importorskip("fastapi", reason="FastAPI isn't installed: pip install 'periscope-adapters[serve]'")
openai = pytest.importorskip("openai", reason="the client of OpenAI isn't installed: pip install openai")

from fastapi.testclient import TestClient  # noqa: E402

from periscope.serving.app import ended_at_shutdown, make_app  # noqa: E402

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    home = tmp_path_factory.mktemp("serving")
    tiny.save_tiny_adapter(home / "eyes", home, {"features": "photos"}, soft_prompt=2, family="qwen2")
    return periscope.load(home / "eyes", device="cpu")


def png(colour: str = "blue", size: tuple[int, int] = (40, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def picture(data: bytes) -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}


def user(*parts: str | bytes) -> dict:
    """A user's message of words and pictures."""
    content = [picture(part) if isinstance(part, bytes) else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


@pytest.fixture(scope="module")
def web(model):
    limits = ServerLimits(max_upload=200_000, max_answer=12, max_media=3)
    with (
        Engine({"eyes": model}, limits) as engine,
        TestClient(make_app(engine), "http://127.0.0.1", raise_server_exceptions=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client(web):
    return openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=web, max_retries=0)


def test_the_official_client_gets_the_answers_of_the_model(client, model):
    assert [one.id for one in client.models.list()] == ["eyes"]
    wanted = model.ask(png(), "What is it?", 6)
    ask = {"model": "eyes", "messages": [user(png(), "What is it?")], "max_tokens": 6}
    answer = client.chat.completions.create(**ask)
    assert answer.choices[0].message.content == wanted
    assert answer.choices[0].finish_reason in ("stop", "length")
    pieces = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == wanted
    assert pieces[-2].choices[0].finish_reason == answer.choices[0].finish_reason
    assert pieces[-1].usage == answer.usage and answer.usage.completion_tokens <= 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 6


def test_a_conversation_is_that_of_a_chat(client, model):
    chat = model.chat(png(), max_new_tokens=5)
    first = chat.send("What is it?")
    second = chat.send("And this?", image=png("red"))
    said = [user(png(), "What is it?"), {"role": "assistant", "content": first}, user(png("red"), "And this?")]
    answer = client.chat.completions.create(model="eyes", messages=said, max_tokens=5)
    assert answer.choices[0].message.content == second
    alone = client.chat.completions.create(model="eyes", messages=[user(png())], max_completion_tokens=5)
    assert alone.choices[0].message.content == model.caption(png(), 5)


def test_a_seed_repeats_what_is_drawn(client):
    def drawn(seed):
        how = {"temperature": 1.5, "seed": seed, "max_tokens": 12}
        answer = client.chat.completions.create(model="eyes", messages=[user("Say.")], **how)
        return answer.choices[0].message.content

    assert drawn(1) == drawn(1) and len({drawn(seed) for seed in range(4)}) > 1


def test_the_client_is_told_what_was_wrong(client):
    for error, messages, more, why in (
        (openai.NotFoundError, [user("a")], {"model": "ears"}, "there is no model 'ears' here; there is eyes"),
        (openai.BadRequestError, [user(b"no picture")], {}, "not a picture"),
        (openai.BadRequestError, [user(png(size=(900, 90))[:-40])], {}, "truncated"),
        (openai.BadRequestError, [user(huge_png())], {}, "too many pixels"),
        (openai.BadRequestError, [user(*[png()] * 4)], {}, "at most 3 pictures"),
        (openai.BadRequestError, [user("word " * 3000)], {}, "leaves no room for an answer"),
        (openai.BadRequestError, [user("a")], {"stop": ["."]}, "stop isn't supported here"),
        (openai.APIStatusError, [user("a" * 200_001)], {}, "at most 200,000 are read"),
    ):
        for stream in (False, True):
            with pytest.raises(error, match=why):
                client.chat.completions.create(**({"model": "eyes", "messages": messages, "stream": stream} | more))


def huge_png() -> bytes:
    """The beginning of a picture of 400 megapixels, in some hundred bytes."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(100))]
    packed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_who_is_let_in(web, model):
    body = {"model": "eyes", "messages": [user("a")]}
    assert web.get("/health").text == "ok\n" and "/v1/chat/completions" in web.get("/").text
    assert web.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
    assert web.post(CHAT, content=json.dumps(body), headers={"content-type": "text/plain"}).status_code == 415
    assert web.get("/docs").status_code == web.get("/openapi.json").status_code == 404
    chunks = (b" " * 100_000 for _ in range(3))
    assert web.post(CHAT, content=chunks, headers={"content-type": "application/json"}).status_code == 413
    with Engine({"eyes": model}, ServerLimits()) as engine:
        closed = TestClient(make_app(engine, "secret"), "http://anywhere")
        assert closed.get("/v1/models").status_code == closed.post(CHAT, json=body).status_code == 401
        assert closed.get("/v1/models", headers={"authorization": "Bearer secret"}).json()["data"][0]["id"] == "eyes"


def test_a_bug_is_told_of_without_its_words(web, model, monkeypatch):
    def broken(*_, **__):
        raise KeyError("a secret path")

    monkeypatch.setattr(model, "speak", broken)
    answer = web.post(CHAT, json={"model": "eyes", "messages": [user("a")]})
    assert answer.status_code == 500 and "secret" not in answer.text and "its log says" in answer.text
    monkeypatch.undo()
    assert web.post(CHAT, json={"model": "eyes", "messages": [user("a")], "max_tokens": 1}).status_code == 200


class Speaker:
    """In place of a model's `speak`: endless words, of which the second waits until it may be said."""

    def __init__(self):
        self.may_go_on, self.begun, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.calls = self.words = 0

    def __call__(self, *_, **__):
        self.calls += 1
        return self._words()

    def _words(self):
        self.begun.set()
        try:
            yield "first"
            assert self.may_go_on.wait(20)
            while True:
                self.words += 1
                yield "more"
        finally:
            self.ended.set()


async def post(app, body: dict, hung_up: asyncio.Event, heard: asyncio.Event) -> list[dict]:
    """Send a request to the application and hang up when told to; what was sent back. heard: a piece of the answer."""
    sent, waiting = [], [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b""}
    scope |= {"asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "scheme": "http"}

    async def receive():
        if waiting:
            return waiting.pop()
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if b"first" in message.get("body", b""):
            heard.set()

    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_ends_an_answer(model, monkeypatch, stream):
    """And those that hang up before their turn are never begun."""
    speaker = Speaker()
    monkeypatch.setattr(model, "speak", speaker)
    body = {"model": "eyes", "messages": [user("a")], "stream": stream}

    async def hang_up(app) -> None:
        first, second, heard = asyncio.Event(), asyncio.Event(), asyncio.Event()
        answered = asyncio.create_task(post(app, body, first, heard))
        await asyncio.to_thread(speaker.begun.wait, 20)
        if stream:
            await heard.wait()
        waiting = asyncio.create_task(post(app, body, second, asyncio.Event()))
        while engine.reading < 2:
            await asyncio.sleep(0)
        second.set()
        never_begun = await waiting  # before the first one's end frees the model's thread
        first.set()
        sent = [*await answered, *never_begun]
        assert [message["type"] for message in sent][:1] == ["http.response.start"] * stream
        speaker.may_go_on.set()
        assert await asyncio.to_thread(speaker.ended.wait, 20)

    with Engine({"eyes": model}, ServerLimits()) as engine:
        asyncio.run(hang_up(make_app(engine)))
    assert speaker.words <= 1 and speaker.calls == 1 and engine.reading == 0


@pytest.mark.parametrize("begun", [True, False], ids=["in its answer", "before"])
def test_what_shutdown_cuts_off_ends(begun):
    async def stopped() -> list[dict]:
        sent: list[dict] = []

        async def endless(_, __, send):
            if begun:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.Event().wait()

        async def keep(message):
            sent.append(message)

        asked = asyncio.create_task(ended_at_shutdown(endless)({"type": "http"}, None, keep))
        await asyncio.sleep(0)
        asked.cancel()
        await asked
        return sent

    first, last = asyncio.run(stopped())
    assert first["status"] == (200 if begun else 503) and not last.get("more_body")
    assert bool(last["body"]) is not begun, "a refusal has words"


def test_more_than_may_wait_are_refused(model):
    async def ask(engine: Engine) -> None:
        async def held() -> None:
            async with engine.place():
                await done.wait()

        done = asyncio.Event()
        tasks = [asyncio.create_task(held()) for _ in range(READ_AT_ONCE + 1)]
        while engine.waiting < 1:
            await asyncio.sleep(0)
        with pytest.raises(RequestError, match="1 requests wait already") as refused:
            async with engine.place():
                pass
        assert refused.value.status == 503
        done.set()
        await asyncio.gather(*tasks)
        async with engine.place():
            assert engine.waiting == 0

    with Engine({"eyes": model}, ServerLimits(max_waiting=1)) as engine:
        asyncio.run(ask(engine))


def test_a_picture_is_encoded_once_in_a_conversation(model, monkeypatch):
    encoded = []
    features = model.features
    monkeypatch.setattr(model, "features", lambda *given: encoded.append(given) or features(*given))
    with Engine({"eyes": model}, ServerLimits()) as engine, TestClient(make_app(engine), "http://localhost") as web:
        for words in ("What is it?", "And now?"):
            answer = web.post(CHAT, json={"model": "eyes", "messages": [user(png(), words)], "max_tokens": 1})
            assert answer.status_code == 200
    assert len(encoded) == 1


@pytest.mark.parametrize(
    ("arguments", "lacks", "why"),
    [
        ([], "", "periscope serve needs the runs to serve"),
        (["./a", "../old/a"], "", "two models would have one name: a, a"),
        (["runs/a", "--host", "0.0.0.0"], "", "--host 0.0.0.0 can be reached from other machines: set a secret"),
        (["runs/a"], "uvicorn", "periscope serve needs FastAPI and uvicorn: pip install"),
    ],
)
def test_the_command_refuses_before_it_loads(monkeypatch, arguments, lacks, why):
    monkeypatch.delenv(access.TOKEN, raising=False)
    monkeypatch.setattr(access.importlib.util, "find_spec", lambda name: None if name == lacks else name)
    monkeypatch.setattr(sys, "argv", ["periscope", "serve", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert why in str(end.value.code)
