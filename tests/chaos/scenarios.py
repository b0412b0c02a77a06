"""The commands that are failed and killed: what each starts from, how it is run again, and what it must have made."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tiny
import torch
from chaos.faults import as_console, files_of
from encoded_photos import noise
from photos import WORDS, tiny_clip

from periscope import eval as eval_script
from periscope import train as train_script
from periscope.adapters.model import AdaptedModel
from periscope.evaluation.config import read_config
from periscope.evaluation.metrics import captions
from periscope.exports import __main__ as exports_tools
from periscope.precompute import cli as encode_script
from periscope.precompute import config as encode_config
from periscope.precompute.decoding import pool, worker
from periscope.shards import derive, write
from periscope.training import heldout
from periscope.training.config import Request, parse_request

TIMED = {"metrics.jsonl", "environment.json"}  # what isn't the same twice, compared without its times
MEDIA = 24

Command = Callable[[], None]


@dataclass(frozen=True)
class Scenario:
    """One command. command: it · again: what a user runs after it failed, in that folder · made: the folder that it
    writes, all else must stay as it is · needs: what of the template is copied.
    """

    name: str
    command: Command
    again: Callable[[Path], Command]
    made: str
    needs: tuple[str, ...]

    def start(self, template: Path, root: Path) -> None:
        """Make `root` anew with what the command needs; what it only reads is linked."""
        shutil.rmtree(root, ignore_errors=True)
        for name in self.needs:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if self.made == name or self.made.startswith(f"{name}/"):
                shutil.copytree(template / name, root / name)
            else:
                (root / name).symlink_to(template / name)

    def result(self, root: Path) -> dict[str, str]:
        """All files that the command made, by path: their sha256, or of those with times in them that of the rest."""
        folder = root / self.made
        found = files_of(folder) if folder.is_dir() else {}
        found |= {name: _untimed(folder / name) for name in found if Path(name).name in TIMED}
        again = {name for name in found if re.fullmatch(r"evals/[2-9]\.json", name)}  # scores may be kept twice
        return {name: found[name] for name in found if name not in again and Path(name).name != "timing.json"}


def _untimed(path: Path) -> str:
    if path.name != "metrics.jsonl":
        return ""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return json.dumps([{k: v for k, v in row.items() if k not in ("seconds", "wait")} for row in rows])


def make_template(home: Path) -> None:
    """Pictures, an encoder, a language model, three feature sets and two runs, made as a user makes them."""
    for folder, count in (("photos", MEDIA), ("fewer", 16)):
        (home / folder).mkdir(parents=True)
        for i in range(count):
            noise(home / folder / f"{i:03d}.png", i, (24, 16))
            (home / folder / f"{i:03d}.txt").write_text(WORDS[i % 5])
    tiny_clip(home / "clip", 0)
    tiny.save_language_model("llama", home / "lm")
    here = os.getcwd()
    os.chdir(home)
    try:
        with restored():
            _make()
    finally:
        os.chdir(here)


def _make() -> None:
    encode("fewer", "features/fewer")()
    encode("photos", "features/photos")()
    train("done", "--steps", "2", "--warm-start", "2")()
    train("tuned", "--init", "runs/done", "--lora", "r=2", "--steps", "2")()
    shutil.copytree("runs/done", "runs/warm")  # what the commands import is imported once, before the forks
    score_run("runs/warm")()
    merged()
    shutil.rmtree("merged")


PATCHED = ((write, "SHARD_SAMPLES"), (pool.DecodingPool, "_results"), (heldout, "SAMPLES"), (heldout, "SCORED_SAMPLES"),
           (AdaptedModel, "_generate_ids"), (train_script, "parse_request"), (eval_script, "read_config"),
           (captions, "has_java"))  # fmt: skip


@contextmanager
def restored() -> Iterator[None]:
    """A block after which what the commands below patch is as before; a child process needs none."""
    before = [(owner, name, getattr(owner, name)) for owner, name in PATCHED]
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _decode_here(self: pool.DecodingPool, number: int, used: int, pieces: list[worker.Piece]) -> list[worker.Result]:
    """Decode in this process: one that was forked can't use the fork server, and starting one takes seconds."""
    worker._slots = self._slots
    return worker.serve(number, used, pieces)


def _small_shards() -> None:
    write.SHARD_SAMPLES = 8
    pool.DecodingPool._results = _decode_here
    torch.set_num_threads(1)


def encode(data: str, out: str) -> Command:
    config = encode_config.read_config(["--data", data, "--encoder", "clip", "--out", out, "--kinds", "pooled",
                                        "--device", "cpu"])  # fmt: skip

    def command() -> None:
        _small_shards()
        encode_script.run(config)

    return as_console(command)


@cache
def _request(*arguments: str) -> Request:
    return parse_request(arguments)


_whole_answers = AdaptedModel._generate_ids


def _two_tokens(self: AdaptedModel, texts: Any, features: Any, most: int, *more: Any) -> list[list[int]]:
    """Answers cut short: they are half of a training's time."""
    return _whole_answers(self, texts, features, min(2, most), *more)


def _training(*arguments: str) -> Command:
    request = _request(*arguments, "--device", "cpu")

    def command() -> None:
        heldout.SAMPLES = heldout.SCORED_SAMPLES = 1
        AdaptedModel._generate_ids = _two_tokens
        train_script.parse_request = lambda: request
        train_script.main()

    return as_console(command)


def train(name: str, *more: str) -> Command:
    return _training("--features", "features/photos", "--lm", "lm", "--name", name, "--adapter", "mlp2", "--batch", "4",
                     *more)  # fmt: skip


def resume(root: Path) -> Command:
    """What the script itself says: train again where there is no checkpoint, else resume."""
    steps = root / "runs/new/steps"
    started = steps.is_dir() and any(path.name.isdigit() for path in steps.iterdir())
    return _training("--resume", "runs/new") if started else new_run


def derived(work: Command) -> Command:
    def command() -> None:
        _small_shards()
        work()

    return as_console(command)


def score_run(run: str) -> Command:
    config = read_config(["--run", run, "--max-new-tokens", "2", "--limit", "3", "--device", "cpu"], "", "", [])

    def command() -> None:
        captions.has_java = lambda: False  # its start takes seconds
        eval_script.read_config = lambda *_: config
        eval_script.main()

    return as_console(command)


new_run = train("new", "--steps", "4", "--warm-start", "2", "--eval-every", "2", "--save-every", "2")
score = score_run("runs/done")
new_set, longer_set = encode("photos", "features/new"), encode("photos", "features/fewer")
joined = derived(lambda: derive.merge(Path("features/all"), [Path("features/photos"), Path("features/fewer")]))
smaller = derived(lambda: derive.recode(Path("features/photos"), Path("features/small"), ["int8"]))
merged = as_console(lambda: exports_tools.merged(Path("runs/tuned"), Path("merged")))
SCENARIOS = (
    Scenario("precompute", new_set, lambda _: new_set, "features/new", ("photos", "clip")),
    Scenario("extend", longer_set, lambda _: longer_set, "features/fewer", ("photos", "clip", "features/fewer")),
    Scenario("train", new_run, resume, "runs/new", ("features/photos", "lm")),
    Scenario("eval", score, lambda _: score, "runs/done", ("features/photos", "lm", "runs/done")),
    Scenario("merge", joined, lambda _: joined, "features/all", ("features/photos", "features/fewer")),
    Scenario("recode", smaller, lambda _: smaller, "features/small", ("features/photos",)),
    Scenario("export", merged, lambda _: merged, "merged", ("features/photos", "lm", "runs/tuned")),
)


def scratch(name: str) -> bool:
    """Whether a path is that of a temporary file or folder."""
    return bool(re.search(r"\.partial(-[^/]*)?(/|$)", name))
