"""All pictures that can be made from what is there: `python -m studies.screenshots`.

charts    docs/comparison.png, retrieval.png, scaling.png and sweep.png, drawn from the JSON files beside them
report    docs/report.png: a run's report.html in headless Chromium, on the left in light and dark colours, on the right
          both at the width of a phone; the browser logs its network meanwhile, and if the page requests anything, no
          picture is written
page      docs/page.png: the page of `periscope serve`, used in headless Chromium (studies.page_picture)
terminal  docs/first_run.md: a first run in a terminal of 80 columns (studies.first_run)
"""

import json
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from PIL import Image

from periscope.charts import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BROWSERS = ("chromium", "google-chrome", "chrome", "chromium-browser", "chrome-headless-shell")
DARK = "--blink-settings=preferredColorScheme=0"
GAP = 16
CHARTS = ("comparison", "retrieval", "scaling", "sweep")


@dataclass
class Options:
    """Which pictures to make."""

    only: tuple[Literal["charts", "report", "page", "terminal"], ...] = ("charts", "report", "page", "terminal")
    """These alone."""
    page: Path = ROOT / "runs" / "demo" / "report.html"
    """The report of a run that was scored."""
    run: Path = ROOT / "runs" / "demo"
    """The run of the demo that the page talks with."""
    browser: str = ""
    """The program (default: the first there is of chromium, google-chrome and so on)."""
    height: int = 2300
    """Pixels of the report, from its top."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if "charts" in options.only:
        draw_charts()
    if "report" in options.only:
        picture_report(options)
    if "page" in options.only:
        from studies.page_picture import picture_page

        picture_page(options.run, browser_of(options), DOCS / "page.png")
    if "terminal" in options.only:
        from studies.first_run import record

        record()


def draw_charts() -> None:
    """Draw each chart whose numbers are in docs/ anew, and name those whose numbers aren't."""
    for name in CHARTS:
        numbers = DOCS / f"{name}.json"
        if numbers.is_file():
            (DOCS / f"{name}.png").write_bytes(png(chart(name, json.loads(numbers.read_text()))))
            print(f"{DOCS / name}.png")
        else:
            print(f"{DOCS / name}.png stays as it is: there is no {numbers.name}")


def chart(name: str, found: Any) -> "Figure":
    """One of `CHARTS`, from what is in its JSON file."""
    from periscope.training.sweep.picture import figure_of
    from studies import compare, ranks, retrieval

    if name == "comparison":
        return compare.picture(found)
    if name == "retrieval":
        return retrieval.curves(found)
    return ranks.picture(found["one"], found["two"], found["cut"]) if name == "scaling" else figure_of(found["runs"])


def browser_of(options: Options) -> str:
    """The browser's program. Raises SystemExit without one."""
    browser = options.browser or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"error: none of {', '.join(BROWSERS)} is installed; name one with --browser")
    return browser


def picture_report(options: Options) -> None:
    """Write docs/report.png. Raises SystemExit without a browser, and as `shot`."""
    browser = browser_of(options)
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
    few.save(DOCS / "report.png", optimize=True)
    print(f"{DOCS / 'report.png'}: {sheet.width} x {sheet.height}; the page asked for nothing")


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
