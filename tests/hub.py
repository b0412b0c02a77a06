"""A stand-in for the Hugging Face Hub: as much of its HTTP interface as pushing and fetching a repository takes.

As https://huggingface.co/docs/hub/api and the client's own requests have it: create, preupload, LFS batch, commit,
revision, tree, paths-info, resolve. Files go through LFS when they end in .safetensors or .tar, as there.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

import yaml

TOKEN = "hf_stand_in"
LARGE = (".safetensors", ".tar")


class Hub:
    """repos: name -> path -> bytes, of datasets under datasets/owner/name · commits: name -> the newest commit ·
    requests: "METHOD /path" of all that came.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.spoilt: set[str] = set()  # repositories that give back something else than was pushed
        self.refuses: dict[str, int] = {}  # repositories whose commits are answered with this status
        self.deaf: set[str] = set()  # repositories at whose commit the connection breaks
        self.lost: set[str] = set()  # files that can't be had, by their path
        self.lies: dict[str, int] = {}  # files -> the size that is said of them
        self.gated: set[str] = set()  # repositories whose terms weren't accepted
        self.cut: set[str] = set()  # files of which half comes, once, and nothing afterwards
        self.half_sent: set[str] = set()

    @contextmanager
    def serving(self):
        """Serve on a free port of this machine; yields the address."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status: int, body: object = None, headers: dict | None = None) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b""
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(length)
                path = unquote(self.path.split("?")[0])
                hub.requests.append(f"{self.command} {path}")
                allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                free = "/lfs-store/" in path or "/paths-info/" in path
                if self.command in ("POST", "PUT") and not free and not allowed:
                    return self.answer(401, {"error": "log in"}, {"X-Error-Message": "Invalid token"})
                if path.startswith(tuple(f"/api/models/{name}/commit" for name in hub.deaf)):
                    self.close_connection = True
                    return self.connection.shutdown(socket.SHUT_RDWR)
                reply = hub.reply(self.command, path, body, f"http://{self.headers['Host']}")
                if self.command == "GET" and path.rpartition("/")[2] in hub.cut:
                    return self.answer_half(path, *reply)
                self.answer(*reply)

            def answer_half(self, path: str, status: int, data: bytes, headers: dict) -> None:
                if path not in hub.half_sent:
                    hub.half_sent.add(path)
                    self.answer(status, data[: len(data) // 2], headers | {"Content-Length": str(len(data))})
                    self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            do_GET = do_HEAD = do_POST = do_PUT = handle_any

            def log_message(self, *_) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()

    def reply(self, method: str, path: str, body: bytes, address: str) -> tuple:
        """(status, body, headers) of one request."""
        if any(re.search(rf"/{repo}(/|$)", path) for repo in self.gated):
            return 403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'user'}/{asked['name']}"
            name = f"datasets/{name}" if asked.get("type") == "dataset" else name
            if name in self.repos:
                return 409, {"error": "exists", "url": f"{address}/{name}"}
            self.repos[name], self.commits[name], self.private[name] = (
                {},
                "0" * 40,
                asked.get("visibility") == "private",
            )
            return 200, {"url": f"{address}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return 200, {
                "errors": [],
                "warnings": [],
                "metadata": yaml.safe_load(json.loads(body)["content"].split("---")[1]),
            }
        if path.startswith("/lfs-store/"):
            self.large[path.rsplit("/", 1)[1]] = body
            return 200, b""
        if found := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return 200, self.lfs(json.loads(body), address)
        api, name = r"/api/(models|datasets)/([^/]+/[^/]+)", lambda kind, name: f"{kind}/{name}".removeprefix("models/")
        if found := re.fullmatch(api + r"/(preupload|commit|revision|tree|paths-info)/([^/]+)", path):
            named, what = name(*found.groups()[:2]), found[3]
            return self.repository(named, what, body) if named in self.repos else self.missing()
        if found := re.fullmatch(api, path):
            named = name(*found.groups())
            return self.repository(named, "revision", b"") if named in self.repos else self.missing()
        if found := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files = self.repos.get(found[1])
            if found[3] in self.lost:
                return 403, b""
            if files is None or found[3] not in files:
                return 404, b"", {"X-Error-Code": "EntryNotFound" if files is not None else "RepoNotFound"}
            data = files[found[3]]
            etag = hashlib.sha256(data).hexdigest()
            return 200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": self.commits[found[1]]}
        return 404, {"error": f"the stand-in doesn't know {method} {path}"}, {}

    def missing(self) -> tuple:
        return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}

    def lfs(self, asked: dict, address: str) -> dict:
        return {
            "transfer": "basic",
            "objects": [
                {"oid": one["oid"], "size": one["size"],
                 "actions": {"upload": {"href": f"{address}/lfs-store/{one['oid']}", "header": {}}}}
                for one in asked["objects"]
            ],
        }  # fmt: skip

    def repository(self, name: str, what: str, body: bytes) -> tuple:
        files = self.repos[name]
        if what == "preupload":
            asked = json.loads(body)["files"]
            modes = {one["path"]: "lfs" if one["path"].endswith(LARGE) else "regular" for one in asked}
            return 200, {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False}
                                   for path, mode in modes.items()]}  # fmt: skip
        if what == "commit" and name in self.refuses:
            return self.refuses[name], {"error": "not now"}, {"X-Error-Message": "not now"}
        if what == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
                if line["key"] == "lfsFile":
                    files[line["value"]["path"]] = self.large[line["value"]["oid"]]
            if name in self.spoilt:
                files["README.md"] += b" "
            self.commits[name] = hashlib.sha1(b"".join(files.values())).hexdigest()
            return 200, {"commitUrl": f"{name}/commit", "commitOid": self.commits[name], "commitMessage": "",
                         "success": True}  # fmt: skip
        if what == "tree":
            return 200, [self.entry(files, path) for path in files]
        if what == "paths-info":
            return 200, [self.entry(files, path) for path in parse_qs(body.decode())["paths"] if path in files]
        name, key = name.removeprefix("datasets/"), name
        return 200, {"id": name, "modelId": name, "sha": self.commits[key], "private": self.private[key],
                     "tags": [], "siblings": [{"rfilename": path} for path in files]}  # fmt: skip

    def entry(self, files: dict[str, bytes], path: str) -> dict:
        data = files[path]
        size = self.lies.get(path, len(data))
        found = {"type": "file", "path": path, "size": size}
        if path.endswith(LARGE):
            lfs = {"size": size, "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
            return found | {"oid": hashlib.sha1(data).hexdigest(), "lfs": lfs}
        return found | {"oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}


def point_to(patch, address: str, home) -> None:
    """Make this process's own library of the Hub ask the stand-in at `address`, with a cache in `home`."""
    from huggingface_hub import constants

    for name, value in {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(home / "cache"),
    }.items():
        patch.setattr(constants, name, value)
    for name, value in {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}.items():
        patch.setenv(name, value)
