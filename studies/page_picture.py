"""docs/page.png: the page of `periscope serve`, used in headless Chromium as a person would use it.

A picture of the demo's scenes is dropped on the box and asked about, with the control beside it. Needs Playwright (`pip
install playwright`), a Chromium and a run of the demo whose feature set is still there. The browser's requests are
watched meanwhile: if the page asks for anything elsewhere, no picture is written.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

from PIL import Image

from periscope.demo.scenes import draw_scenes, render

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ("", "What colour is the object at the right?", "How many objects are there?")
SIZE = {"width": 1180, "height": 820}
WAIT = 60_000  # milliseconds for an answer
SEED = 11


def picture_page(run: Path, browser: str, target: Path) -> None:
    """Write a screenshot of a conversation with the run. Raises SystemExit if the page asked for anything elsewhere."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        medium = Path(folder) / "scene.png"
        render(draw_scenes(SEED, 1, "heldout")[0], random.Random(SEED)).save(medium)
        server, address = started(run)
        try:
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            page = chromium.new_page(viewport=SIZE)
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            converse(page, address, medium)
            page.screenshot(path=target)
            chromium.close()
        finally:
            server.terminate()
            server.wait()
    elsewhere = {url for url in asked if not url.startswith(("data:", "blob:")) and not url.startswith(address)}
    if elsewhere:
        target.unlink()
        raise SystemExit(f"error: the page asked for {', '.join(sorted(elsewhere))}")
    with Image.open(target) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(target, optimize=True)
    print(f"{target}: {few.width} x {few.height}; {len(asked)} requests, all to the server")


def converse(page, address: str, medium: Path) -> None:
    """Upload the picture, choose the control, and ask; each answer is waited for."""
    page.goto(address)
    page.get_by_role("checkbox").first.check()
    page.locator("input[type=file]").first.set_input_files(medium)
    page.wait_for_selector("button[aria-label*=emove], .thumbnail-item", timeout=WAIT)
    box = page.get_by_role("textbox").last
    for number, question in enumerate(QUESTIONS, 1):
        box.fill(question)
        box.press("Enter")
        page.wait_for_function(
            "count => [...document.querySelectorAll('[aria-label=\"chatbot conversation\"]')]"
            ".every(chat => chat.querySelectorAll('.bot-row').length >= count)",
            arg=number,
            timeout=WAIT,
        )
        page.wait_for_timeout(1500)  # until the last piece is shown


def started(run: Path) -> tuple[subprocess.Popen, str]:
    """A server of the run on a free port, once it answers."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "from periscope.cli import main; main()"
    home = run.resolve().parents[1]
    server = subprocess.Popen(
        [sys.executable, "-c", program, "serve", str(run.resolve()), "--port", str(port), "--device", "cpu"],
        cwd=home, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            with urllib.request.urlopen(f"{address}/health"):
                return server, address
        except (URLError, ConnectionError):
            time.sleep(1)
    server.terminate()
    raise SystemExit(f"error: the server of {run} didn't start at {urlsplit(address).netloc}")
