"""Render report.html in headless Chromium into docs/report.png: `python -m studies.screenshot`.

On the left the page in light and dark colours, on the right both at the width of a phone. The browser logs its network
meanwhile; if the page requests anything, no picture is written.
"""

import json
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "google-chrome", "chrome", "chromium-browser")
DARK = "--blink-settings=preferredColorScheme=0"
GAP = 16


@dataclass
class Options:
    """Which report to render."""

    page: Path = ROOT / "runs" / "demo" / "report.html"
    """The report of a run that was scored."""
    out: Path = ROOT / "docs" / "report.png"
    """The picture."""
    browser: str = ""
    """The program (default: the first there is of chromium, google-chrome and so on)."""
    height: int = 2300
    """Pixels of the page, from its top."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    browser = options.browser or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"error: none of {', '.join(BROWSERS)} is installed; name one with --browser")
    shots = [
        shot(browser, options.page, width, options.height, *flags)
        for width, flags in ((1160, []), (1160, [DARK]), (500, []), (500, [DARK]))
    ]
    sheet = Image.new("RGB", (sum(one.width for one in shots) + GAP * (len(shots) - 1), options.height), "white")
    left = 0
    for one in shots:
        sheet.paste(one, (left, 0))
        left += one.width + GAP
    sheet = sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS)
    few = sheet.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(options.out, optimize=True)
    print(f"{options.out}: {sheet.width} x {sheet.height}; the page asked for nothing")


def shot(browser: str, page: Path, width: int, height: int, *flags: str) -> Image.Image:
    """A screenshot of the top of a page. Raises SystemExit if there is none, or if the page requested anything."""
    with tempfile.TemporaryDirectory() as folder:
        picture, log = Path(folder) / "page.png", Path(folder) / "net.json"
        command = [
            browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", f"--screenshot={picture}",
            f"--log-net-log={log}", *flags, page.resolve().as_uri(),
        ]  # fmt: skip
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=120, check=False)
        if not picture.is_file():
            raise SystemExit(f"error: {browser} made no picture of {page}")
        if asked := asked_for(log.read_text(), page.resolve().as_uri()):
            raise SystemExit(f"error: {page} asked for {', '.join(sorted(asked))}")
        with Image.open(picture) as image:
            return image.convert("RGB")


def asked_for(log: str, page: str) -> set[str]:
    """Addresses that a page made the browser request, other than the page itself and its data: URLs, from Chromium's
    network log. The browser's own requests (updates, the time) have "not an origin" as initiator.
    """
    params = [event.get("params") or {} for event in json.loads(log)["events"]]
    urls = {one["url"] for one in params if "url" in one and one.get("initiator", "not an origin") != "not an origin"}
    return {url for url in urls if not url.startswith(("data:", page))}


if __name__ == "__main__":
    main()
