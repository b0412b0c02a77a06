"""The page at `/`: its rules without Gradio, and where it is installed, what its own client gets."""

import asyncio
import threading
import time
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

import periscope
from periscope.errors import RequestError
from periscope.evaluation.config import ServerLimits

pytest.importorskip("fastapi", reason="FastAPI isn't installed: pip install 'periscope-adapters[serve]'")

from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from periscope.serving.engine import Engine, swapped
from periscope.serving.page import Talk, converse, shown
from periscope.serving.page_access import PageGuard
from periscope.serving.stand_ins import stand_ins_of

JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
TOKENS = 6  # of an answer


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("page")
    tiny.save_tiny_adapter(home / "eyes", home, {"features": "photos"}, soft_prompt=2, family="qwen2")
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 30), colour).save(home / f"{colour}.png")
    return home


@pytest.fixture(scope="module")
def model(home):
    return periscope.load(home / "eyes", device="cpu")


async def echo(scope, receive, send):
    """An application that says how much it was sent."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"{len(body)} bytes")(scope, receive, send)


def guarded(token: str = "", most: int = 1000, host: str = "localhost") -> TestClient:
    return TestClient(PageGuard(echo, token, Path("/up"), most), f"http://{host}")


def test_the_page_has_the_apis_rules():
    web = guarded()
    assert web.get("/").text == "0 bytes" and web.post(UPLOAD, content=b"abc").text == "3 bytes"
    assert web.get("/", headers={"host": "evil.example"}).status_code == 403
    assert web.get("/v1/models", headers={"host": "evil.example"}).status_code == 200, "which has rules of its own"
    for site, status in (("http://localhost", 200), ("http://evil.example", 403), ("null", 403)):
        assert web.post(UPLOAD, content=b"a", headers={"origin": site}).status_code == status
    closed = guarded("secret", host="anywhere")
    refused = closed.get("/")
    assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic ")
    for given, status in (("Bearer secret", 200), ("Bearer other", 401), ("Basic ???", 401), ("basic", 401)):
        assert closed.get("/", headers={"authorization": given}).status_code == status
    assert closed.get("/", auth=("anyone", "secret")).status_code == 200
    assert closed.get("/", auth=("secret", "other")).status_code == 401
    assert "default-src 'self'" in web.get("/").headers["content-security-policy"]


def test_only_what_a_conversation_needs_passes():
    web = guarded()
    passes = ("/config", "/assets/a.js", "/gradio_api/info", "/gradio_api/queue/data", "/gradio_api/file=/up/a.png")
    assert {web.get(path).status_code for path in passes} == {200}
    closed = (
        *("/gradio_api/file=http://evil.example/a", "/gradio_api/file=HTTPS:%2F%2Fevil.example", "/monitoring"),
        *("/gradio_api/proxy=http://evil.example", "/gradio_api/run-history/buckets", "/docs", "/gradio_api/call/ask"),
    )
    assert {web.get(path).status_code for path in closed} == {404}
    assert {web.post(path).status_code for path in ("/login", "/gradio_api/run/ask", "/config")} == {404}
    assert web.delete("/config").status_code == 404


def test_uploads_are_limited_and_nothing_else_is_read():
    web = guarded()
    assert web.post(UPLOAD, content=b"a" * 1001).status_code == 413
    assert web.post(UPLOAD, content=(b"a" * 400 for _ in range(3))).status_code == 413
    assert web.post(JOIN, content=(b"a" * 400 for _ in range(3))).status_code == 413
    file = {"path": "/up/a.png", "url": "http://localhost/gradio_api/file=/up/a.png"}
    assert web.post(JOIN, json={"data": [{"files": [file]}]}).status_code == 200
    for path in ("http://evil.example/a.png", " HTTPS://evil.example", "/etc/passwd", "/up/../a", "/upper", ""):
        refused = web.post(JOIN, json={"data": [{"files": [{"path": path}]}]})
        assert refused.status_code == 400 and "only uploaded files are read" in refused.text
    assert web.post(JOIN, content=b"{").status_code == 400
    assert web.post(JOIN, content=b"[" * 900).status_code == 400


@pytest.mark.parametrize("known", [True, False], ids=["told in the stream", "a bug"])
def test_a_stream_of_a_session_that_is_over_ends(known):
    async def over(_, __, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("it has begun") from HTTPException(404) if known else None

    web = TestClient(PageGuard(over, "", Path("/up"), 1000), "http://localhost")
    if known:
        assert web.get("/gradio_api/queue/data").status_code == 200
    else:
        with pytest.raises(RuntimeError, match="it has begun"):
            web.get("/gradio_api/queue/data")


async def told(engine: Engine, given: dict, before: Talk, also: bool = False) -> Talk:
    steps = [step async for step in converse(engine, given, before, "eyes", also)]
    return steps[-1]


def test_a_conversation_is_that_of_the_api(home, model):
    """And what was said stays as it was when something is refused."""
    chat = model.chat(home / "red.png", max_new_tokens=TOKENS)
    wanted = [chat.send("What is it?"), chat.send("And this?", image=home / "blue.png")]
    first = {"text": "What is it?", "files": [str(home / "red.png")]}
    second = {"text": "And this?", "files": [str(home / "blue.png")]}

    async def talk() -> list[Talk]:
        one = await told(engine, first, Talk())
        with pytest.raises(RequestError, match="begin a new one"):
            await told(engine, {"text": "a" * 20_000}, one)
        return [one, await told(engine, second, one)]

    with Engine({"eyes": model}, ServerLimits(max_upload=20_000, max_answer=TOKENS)) as engine:
        one, two = asyncio.run(talk())
    said = [message["content"] for message in two.shown if message["role"] == "assistant"]
    assert said == wanted and [message["content"] for message in one.shown][1:] == ["What is it?", wanted[0]]
    assert one.shown[0]["content"] == {"path": first["files"][0]} and not two.control
    assert shown({"text": "", "files": []})[-1]["content"] == "(a caption)"


def test_the_control_answers_from_another_medium(home, model):
    """From one of the conversation, or of the set that the run was trained on; never from the same picture."""
    red, blue = (model.features(home / f"{colour}.png") for colour in ("red", "blue"))
    asked = {"text": "What is it?", "files": [str(home / "red.png")]}

    async def answers(engine: Engine, given: dict) -> Talk:
        return await told(engine, given, Talk(), also=True)

    with Engine({"eyes": model}, ServerLimits(max_answer=TOKENS), stand_ins={"eyes": {"image": [red, blue]}}) as engine:
        talk = asyncio.run(answers(engine, asked))
    assert talk.control[-1]["content"] == model.ask(home / "blue.png", "What is it?", TOKENS)
    assert talk.shown[-1]["content"] == model.ask(home / "red.png", "What is it?", TOKENS)
    with Engine({"eyes": model}, ServerLimits(max_answer=TOKENS)) as engine:
        with pytest.raises(RequestError, match="no other image to answer from"):
            asyncio.run(answers(engine, asked))
        both = {"text": "Which?", "files": [str(home / f"{colour}.png") for colour in ("red", "blue")]}
        talk = asyncio.run(answers(engine, both))
    assert talk.control[-1]["content"] == model.ask([home / "blue.png", home / "red.png"], "Which?", TOKENS)
    found = swapped({"image:0": red, "image:1": blue}, {})
    assert torch.equal(found["image:0"], blue) and torch.equal(found["image:1"], red)


def test_stand_ins_are_held_out_media_of_the_runs_set(home, model):
    assert stand_ins_of(model, {None: home / "eyes"}) == {"image": []}, "an adapter alone names no set that is here"


@pytest.fixture(scope="module")
def page(home, model, tmp_path_factory):
    """The address of a server with the page, and its token."""
    pytest.importorskip("gradio", reason="Gradio isn't installed: pip install 'periscope-adapters[page]'")
    import uvicorn
    from processes import free_port

    from periscope.serving.app import make_app

    stand_ins = {"eyes": {"image": [model.features(home / "blue.png")]}}
    with Engine(
        {"eyes": model, "again": model}, ServerLimits(max_upload=200_000, max_answer=TOKENS), None, stand_ins
    ) as engine:
        app = make_app(engine, "secret", tmp_path_factory.mktemp("uploads"))
        server = uvicorn.Server(
            uvicorn.Config(app, port=int(free_port()), log_level="warning", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{server.config.port}"
        server.should_exit = True
        thread.join()


@pytest.mark.slow
def test_gradios_own_client_talks_to_it(page, home, model):
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(page, headers={"authorization": "Bearer secret"}, verbose=False)
    file = gradio_client.handle_file(home / "red.png")

    def ask(words: str, files: list, control: bool = False) -> tuple:
        job = client.submit({"text": words, "files": files}, "eyes", control, api_name="/ask")
        job.result(60)  # raises what went wrong
        return job.outputs()[-1]

    answers, controls, _ = ask("What is it?", [file], True)
    words = [part["text"] for part in answers[-1]["content"]]
    assert words == [model.ask(home / "red.png", "What is it?", TOKENS)] and answers[-1]["role"] == "assistant"
    assert [part["text"] for part in controls[-1]["content"]] == [model.ask(home / "blue.png", "What is it?", TOKENS)]
    chat = model.chat(home / "red.png", max_new_tokens=TOKENS)
    chat.send("What is it?")
    answers, _, _ = ask("And now?", [])
    assert answers[-1]["content"][0]["text"] == chat.send("And now?"), "it remembers"
    large = home / "large.png"
    large.write_bytes(bytes(250_000))
    with pytest.raises(Exception, match=r"413|too large|max"):
        ask("a", [gradio_client.handle_file(large)])
    broken = home / "broken.png"
    broken.write_bytes((home / "red.png").read_bytes()[:60])
    with pytest.raises(Exception, match=r"image|picture|truncated"):
        ask("a", [gradio_client.handle_file(broken)])


@pytest.mark.slow
def test_the_api_and_the_page_share_a_server(page):
    import httpx

    with httpx.Client(base_url=page) as web:
        assert web.get("/").status_code == 401 and web.get("/health").text == "ok\n"
        assert web.get("/v1/models").status_code == 401
        told = web.get("/", auth=("me", "secret"))
        assert told.status_code == 200 and "gradio" in told.text
        names = web.get("/v1/models", headers={"authorization": "Bearer secret"}).json()["data"]
        assert [name["id"] for name in names] == ["eyes", "again"]
        key = {"authorization": "Bearer secret"}
        assert web.get("/gradio_api/file=/etc/passwd", headers=key).status_code in (403, 404)
        for path in ("http://127.0.0.1:1/a.png", "/etc/passwd"):
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            event = {"data": [{"text": "", "files": [file]}], "fn_index": 0, "session_hash": "a"}
            assert web.post(JOIN, json=event, headers=key).status_code == 400
