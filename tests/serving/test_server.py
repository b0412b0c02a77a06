"""`periscope serve` as a process of its own: many at once, hostile uploads, hang-ups, and memory that stays flat."""

import base64
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
from PIL import Image
from processes import free_port

import periscope

pytest.importorskip("fastapi", reason="FastAPI isn't installed: pip install 'periscope-adapters[serve]'")
pytestmark = pytest.mark.slow
CHAT = "/v1/chat/completions"
HEADERS = {"content-type": "application/json"}
AT_ONCE = 200
MOST = 5_000_000
GROWTH = 40_000_000  # bytes that three rounds may add to the memory of a warm server


class Server:
    """A server with a tiny model on a free port."""

    def __init__(self, home: Path):
        self.port = int(free_port())
        program = "from periscope.cli import main; main()"
        options = ["serve", str(home / "eyes"), "--port", str(self.port), "--device", "cpu", "--max-upload", str(MOST)]
        where = os.pathsep.join([str(Path(periscope.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        self.log = (home / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *options], env=os.environ | {"PYTHONPATH": where},
            stdout=self.log, stderr=self.log,
        )  # fmt: skip
        for _ in range(600):
            if self.healthy():
                return
            assert self.process.poll() is None, (home / "log").read_text()
            time.sleep(0.1)
        raise AssertionError("the server didn't start within a minute")

    def healthy(self) -> bool:
        try:
            return self.request("GET", "/health")[0] == 200
        except OSError:
            return False

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, body, HEADERS)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ask(self, body: bytes) -> tuple[int, str]:
        """The status, and the answer's words or why there is none."""
        status, said = self.request("POST", CHAT, body)
        if said.startswith(b"data: "):
            pieces = [json.loads(line[6:]) for line in said.split(b"\n\n") if line and not line.endswith(b"[DONE]")]
            return status, "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
        value = json.loads(said)
        return status, value["error"]["message"] if "error" in value else value["choices"][0]["message"]["content"]

    def hang_up(self, body: bytes, share: float) -> None:
        """Send a share of a request and close the connection."""
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: int(share * len(body))])

    def memory(self) -> int:
        """Bytes of the server's and its decoding processes' memory, shared pages once for each."""
        parents = {self.process.pid}
        total = 0
        for status in sorted(Path("/proc").glob("[0-9]*/status"), key=lambda path: int(path.parent.name)):
            try:
                facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
            except OSError:
                continue
            if int(facts["Pid"]) in parents or int(facts["PPid"]) in parents:
                parents.add(int(facts["Pid"]))
                total += 1024 * int(facts.get("VmRSS", "0 kB").split()[0])
        return total


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("server")
    tiny.save_tiny_adapter(home / "eyes", home, {"features": "photos"}, soft_prompt=2, family="qwen2")
    server = Server(home)
    yield server
    server.process.terminate()
    assert server.process.wait(60) in (0, -15)


def png(number: int, size: tuple[int, int] = (64, 48)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB" if size[0] < 1000 else "1", size, (number % 256, 80, 10) if size[0] < 1000 else 1).save(
        stream, "PNG"
    )
    return stream.getvalue()


def body(data: bytes, stream: bool = False, tokens: int = 4) -> bytes:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": "eyes", "messages": messages, "stream": stream, "max_tokens": tokens}).encode()


def one_round(server: Server) -> Counter:
    """Everything at once; how often there was which status."""
    refused = {
        "100 megapixels": body(png(0, (10_000, 10_000))),
        "truncated": body(png(1, (640, 480))[:-60]),
        "too long": body(bytes(MOST)),
        "no JSON": b"{",
    }
    asked = [body(png(number % 8), stream=number % 2 == 0) for number in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for number in range(20):
            threads.submit(server.hang_up, body(png(number), tokens=1000), (0.5, 1.0)[number % 2])
        answers = list(threads.map(server.ask, asked))
        told = dict(zip(refused, threads.map(server.ask, refused.values()), strict=True))
    for number, answer in enumerate(answers):
        assert answer == answers[number % 8]
    assert told["100 megapixels"][0] == 400 and "too many pixels" in told["100 megapixels"][1]
    assert told["truncated"][0] == 400 and "truncated" in told["truncated"][1]
    assert told["too long"][0] == 413 and told["no JSON"][0] == 400
    return Counter(status for status, _ in answers)


def test_many_at_once_hostile_uploads_and_hang_ups(server):
    assert one_round(server) == {200: AT_ONCE}  # warm: decoders are started, threads and allocations made
    before, sizes = server.memory(), []
    for _ in range(3):
        assert one_round(server) == {200: AT_ONCE}
        sizes.append(server.memory())
    print(f"memory: {before / 1e6:.0f} MB, then {', '.join(f'{size / 1e6:.0f}' for size in sizes)} MB")
    assert max(sizes) - before < GROWTH
    assert server.healthy()
