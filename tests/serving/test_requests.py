"""What a request says, read strictly, and the conversation in it."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import tiny

from periscope.adapters.composed import ComposedModel
from periscope.adapters.generation.decoding import Decoding
from periscope.errors import AdapterError, RequestError
from periscope.serving import fetching
from periscope.serving.access import admit, is_loopback
from periscope.serving.requests import SentMedium, conversation_of, read_request

SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def asked(*messages, **options):
    return read_request(json.dumps({"model": "m", "messages": messages, **options}).encode())


def user(*parts):
    """A user's message of words and parts."""
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


@pytest.fixture(scope="module")
def prompt(language_model_folder):
    return ComposedModel({"image": tiny.adapted(language_model_folder("smollm"))}).prompt


def turns(prompt, *messages, most=8):
    conversation, sent = conversation_of(asked(*messages).messages, prompt, most)
    return [turn["content"] for turn in conversation.turns(prompt)], list(sent)


def test_media_stand_where_the_message_has_them(prompt):
    assert turns(prompt, user("What is it?", PICTURE)) == (["<image>What is it?"], ["image:0"])
    assert turns(prompt, user(PICTURE, "What is it?")) == turns(prompt, user("What is it?", PICTURE))
    said, sent = turns(prompt, user("Is", PICTURE, "like", PICTURE, "?"))
    assert said == ["Is <image> like <image> ?"] and sent == ["image:0", "image:1"]
    assert turns(prompt, user("a", "b")) == (["a\nb"], [])


def test_a_conversation_is_remembered_by_its_messages(prompt):
    messages = [
        {"role": "system", "content": "Be brief."},
        user(PICTURE, "What?"),
        {"role": "assistant", "content": "a"},
    ]
    said, sent = turns(prompt, *messages, user("And this?", PICTURE))
    assert said == ["Be brief.", "<image>What?", "a", "<image>And this?"] and sent == ["image:0", "image:1"]


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([{"role": "assistant", "content": "a"}], "the last message must be the user's"),
        ([{"role": "system", "content": [PICTURE]}, user("a")], "only the user's messages show media"),
        ([user("a", *[PICTURE] * 9)], "at most 8 pictures"),
        (
            [user({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}})],
            "reads image, and .* audio",
        ),
        ([user("<image> <image> alike?", PICTURE)], "a message has 2 marks"),
        ([user("")], "there is nothing to caption yet"),
    ],
)
def test_conversations_that_can_not_be_answered(prompt, messages, why):
    with pytest.raises((RequestError, AdapterError), match=why):
        turns(prompt, *messages)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"stop": ["."]}, "stop isn't supported here"),
        ({"tools": [{"type": "function"}]}, "tools isn't supported"),
        ({"response_format": {"type": "json_object"}}, "response_format isn't supported"),
        ({"n": 2}, r"int <= 1 - at \$\.n"),
        ({"temperature": 3}, r"temperature"),
        ({"messages": []}, "length >= 1"),
        ({"messages": [{"role": "tool", "content": "a"}]}, r"'tool' - at \$\.messages\[0\]\.role"),
        ({"messages": [user({"type": "file", "file": {}})]}, "Invalid value 'file'"),
    ],
)
def test_requests_that_are_refused(options, why):
    with pytest.raises(RequestError, match=why):
        asked(*options.pop("messages", [user("a")]), **options)


def test_what_is_no_request():
    for body in (b"", b"[]", b"{", b"\xff\xfe", b'{"model": "m"}', b"[" * 100_000):
        with pytest.raises(RequestError, match="the request can't be read"):
            read_request(body)


def test_how_an_answer_is_decoded():
    harmless = {"stop": None, "frequency_penalty": 0, "logprobs": False, "response_format": {"type": "text"}}
    assert asked(user("a"), **harmless, unknown=1).decoding(1000) == Decoding(256)
    assert asked(user("a"), max_tokens=5).decoding(1000) == Decoding(5)
    assert asked(user("a"), max_completion_tokens=2000, temperature=0, top_p=0.5).decoding(1000) == Decoding(1000)
    assert asked(user("a"), top_p=0.5).decoding(9) == Decoding(9, 1.0, 0.5)
    assert asked(user("a"), temperature=0.5, top_k=4).decoding(9) == Decoding(9, 0.5, top_k=4)


def test_the_bytes_of_a_medium():
    data = base64.b64encode(b"bytes").decode()
    for place in (data, f"data:image/png;base64,{data}", f"data:;base64,{data}", f"DATA:image/png;x=y;BASE64,{data}"):
        assert SentMedium("image", place).read(None) == b"bytes"
    assert SentMedium("image", "http://a/b").read(lambda address: address.encode()) == b"http://a/b"
    for place, why in (
        ("https://example.org/cat.png", "addresses aren't fetched: .*--fetch-urls"),
        ("data:image/png;base64,????", "the image's data isn't base64"),
        ("data:image/png,abc", "begins with 'data:image/png,abc'"),
        ("file:///etc/passwd", "begins with 'file:///etc/passwd'"),
        ("/etc/passwd.png", "isn't base64"),
    ):
        with pytest.raises(RequestError, match=why):
            SentMedium("image", place).read(None)


def test_who_may_ask():
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "127.0.0.2:1"):
        admit({"host": host}, "")
    for host in ("evil.example:8000", "localhost.evil.example", "192.168.0.1", "", "[::1"):
        with pytest.raises(RequestError, match="this server answers to localhost") as refused:
            admit({"host": host}, "")
        assert refused.value.status == 403
    admit({"host": "evil.example", "authorization": "Bearer secret"}, "secret")
    for given in ("", "Bearer ", "Bearer Secret", "secret2", "Bearer sécret"):
        with pytest.raises(RequestError, match="isn't this server's token") as refused:
            admit({"host": "localhost", "authorization": given}, "secret")
        assert refused.value.status == 401
    assert not is_loopback("0.0.0.0") and not is_loopback("::") and not is_loopback("example.org")


class Site(BaseHTTPRequestHandler):
    def do_GET(self):
        place = {"/moved": "/cat.png", "/loop": "/loop", "/inside": "http://10.0.0.1/"}.get(self.path)
        self.send_response(302 if place else 200 if self.path == "/cat.png" else 404)
        if place:
            self.send_header("Location", place)
        self.end_headers()
        self.wfile.write(b"" if place else b"picture")

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    with HTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_addresses_are_fetched_from_public_networks_alone(site, monkeypatch):
    with pytest.raises(RequestError, match=r"127\.0\.0\.1 is in a private network"):
        fetching.fetch(f"{site}/cat.png", 100)
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
    assert fetching.fetch(f"{site}/cat.png", 100) == fetching.fetcher(100)(f"{site}/moved") == b"picture"
    for path, why in (
        ("cat.png", r"more than 3 bytes \(--max-upload\)"),
        ("loop", "redirects more than 3 times"),
        ("inside", r"10\.0\.0\.1 is in a private network"),
        ("none", "answers with status 404"),
    ):
        with pytest.raises(RequestError, match=why):
            fetching.fetch(f"{site}/{path}", 3 if path == "cat.png" else 100)
    with pytest.raises(RequestError, match="is no http or https address"):
        fetching.fetch("file:///etc/passwd", 100)
