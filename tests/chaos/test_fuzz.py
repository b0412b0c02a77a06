"""Every file that is read, changed in hostile ways: its readers give one sentence, soon, in bounded memory, and neither
run anything nor write anywhere else.
"""

import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chaos import mutations
from chaos.mutations import Mutate
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from periscope.adapters.io.checkpoint import load_adapter
from periscope.adapters.io.schema import read_adapter_config
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.lora import load_lora, remove_lora
from periscope.errors import UserError
from periscope.evaluation.report.compare_table import table
from periscope.evaluation.report.page import Medium, report
from periscope.evaluation.report.runs import RunFolder
from periscope.evaluation.sharing import pictured
from periscope.places import find_checkpoint
from periscope.precompute.contact_sheet import contact_sheet
from periscope.precompute.media.npy import array_in
from periscope.precompute.sources import collect
from periscope.recipes import load_recipe
from periscope.shards.read import FeatureSet
from periscope.shards.timing import load_timing
from periscope.shards.verify import inspect, verify
from periscope.shards.write import SetWriter
from periscope.training.config import RENAMED, option_names
from periscope.training.resolve import newest_features, read_start, resumed, settle
from periscope.training.run import Run, adapter_folders, best_evaluation, newest_run
from periscope.training.sweep.sweep import outcome

SECONDS, MEMORY = 5, 1 << 30
EVENTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "os.rename", "os.remove",
          "os.mkdir", "os.rmdir", "os.symlink", "os.link", "shutil.rmtree"}  # fmt: skip


def read_set(home: Path) -> None:
    features = FeatureSet(home / "features/photos")
    list(features.texts())
    key = features.keys[0]
    features.info(key), features.thumbnail(key), features.stored(key)
    for kind in features.manifest["features"]:
        features.read(key, kind)
    contact_sheet(features, 1)
    load_timing(features.path)
    inspect(features.path)
    verify(features.path)


def find_features(home: Path) -> None:
    newest_features(home / "features", "pooled")


def continue_set(home: Path) -> None:
    manifest = FeatureSet(home / "features/fewer").manifest
    with SetWriter(home / "features/photos", "image", manifest["encoder"], manifest["features"]) as writer:
        writer.known()


def read_run(home: Path) -> None:
    run = Run.open(home / "runs/done")
    resumed(run, {}, finished=True)
    run.finished()
    best_evaluation(run.evaluations(10))
    run.load_state("cpu")
    for folder in adapter_folders(run.path):
        load_adapter(folder)
    find_checkpoint(run.path)
    read_start(str(run.path))
    newest_run(home / "runs")
    outcome(run.path, {})
    run.cut_back(1)


def show_run(home: Path) -> None:
    run = RunFolder(home / "runs/warm")
    table([run, RunFolder(home / "runs/done")])
    report(run, lambda key: Medium(name=key))
    pictured(RunFolder(home / "runs/warm"))


def read_adapter(home: Path) -> None:
    load_adapter(home / "runs/done/steps/000002/adapter")


def read_config(home: Path) -> None:
    read_adapter_config(home / "runs/done/steps/000002/adapter")


def read_recipe(home: Path) -> None:
    recipe = load_recipe(str(home / "recipe.toml"))
    settle({}, recipe.train_options(option_names(), "mlp4", RENAMED))


def read_rows(home: Path) -> None:
    _read_vectors(home / "rows.npy")


def read_tensors(home: Path) -> None:
    _read_vectors(home / "rows.safetensors")


def _read_vectors(path: Path) -> None:
    for medium in islice(collect(path).media.values(), 5):
        array_in(medium.read())


def read_lora(home: Path) -> None:
    load_lora(_language_model(home), home / "runs/tuned/steps/000002/adapter/lora")


def read_language_model(home: Path) -> None:
    load_language_model(str(home / "lm"))


_MODELS: dict[Path, Any] = {}


def _language_model(home: Path) -> Any:
    """The language model, loaded once and without the LoRA of the last call."""
    if home not in _MODELS:
        _MODELS[home] = load_language_model(str(home / "lm"))
    if _MODELS[home].lora:
        remove_lora(_MODELS[home])
    return _MODELS[home]


@dataclass(frozen=True)
class Target:
    """A file, how it is changed, and what reads it. weight: how many of the inputs it gets."""

    file: str
    mutate: Mutate
    read: Callable[[Path], None]
    weight: int = 10


SET, RUN, STEP = "features/photos", "runs/done", "runs/done/steps/000002"
TARGETS = (
    Target(f"{SET}/manifest.json", mutations.of_json, read_set, 20),
    Target(f"{SET}/manifest.json", mutations.of_json, find_features),
    Target(f"{SET}/texts.jsonl", mutations.of_lines, read_set),
    Target(f"{SET}/heldout.txt", mutations.of_words, read_set),
    Target(f"{SET}/rejected.jsonl", mutations.of_lines, read_set, 3),
    Target(f"{SET}/timing.json", mutations.of_json, read_set, 5),
    Target(f"{SET}/index.safetensors", mutations.of_safetensors, read_set),
    Target(f"{SET}/shard-000000.tar", mutations.of_bytes, read_set),
    Target(f"{SET}/progress.jsonl", mutations.of_lines, continue_set),
    Target(f"{RUN}/config.toml", mutations.of_toml, read_run, 20),
    Target(f"{RUN}/metrics.jsonl", mutations.of_lines, read_run),
    Target(f"{RUN}/samples.md", mutations.of_words, read_run, 3),
    Target(f"{RUN}/last", mutations.of_words, read_run, 5),
    Target(f"{RUN}/best", mutations.of_words, read_run, 5),
    Target(f"{STEP}/state/facts.json", mutations.of_json, read_run),
    Target(f"{STEP}/state/tensors.safetensors", mutations.of_safetensors, read_run),
    Target(f"{STEP}/adapter/adapter.json", mutations.of_json, read_config, 20),
    Target(f"{STEP}/adapter/adapter.json", mutations.of_json, read_adapter),
    Target(f"{STEP}/adapter/adapter.safetensors", mutations.of_safetensors, read_adapter),
    Target("runs/warm/config.toml", mutations.of_toml, show_run, 5),
    Target("runs/warm/metrics.jsonl", mutations.of_lines, show_run, 5),
    Target("runs/warm/eval.json", mutations.of_json, show_run, 5),
    Target("runs/warm/predictions.jsonl", mutations.of_lines, show_run, 5),
    Target("runs/warm/environment.json", mutations.of_json, show_run, 5),
    Target("runs/warm/samples.md", mutations.of_words, show_run, 5),
    Target("runs/warm/steps/000002/adapter/adapter.json", mutations.of_json, show_run, 5),
    Target("recipe.toml", mutations.of_toml, read_recipe, 20),
    Target("rows.npy", mutations.of_bytes, read_rows),
    Target("rows.safetensors", mutations.of_safetensors, read_tensors),
    Target("runs/tuned/steps/000002/adapter/lora/adapter_config.json", mutations.of_json, read_lora),
    Target("runs/tuned/steps/000002/adapter/lora/adapter_model.safetensors", mutations.of_safetensors, read_lora, 5),
    Target("lm/config.json", mutations.of_json, read_language_model, 3),
    Target("lm/tokenizer.json", mutations.of_json, read_language_model, 3),
    Target("lm/tokenizer_config.json", mutations.of_json, read_language_model, 3),
    Target("lm/model.safetensors", mutations.of_safetensors, read_language_model, 3),
)


class Guard:
    """Reports what a reader does besides reading, while it is armed."""

    def __init__(self) -> None:
        self.home, self.seen, self.armed = "", list[str](), False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.armed:
            return
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, mode, flags = os.fsdecode(arguments[0]), arguments[1] or "", arguments[2] or 0
            writes = set(str(mode)) & set("wax+") or int(flags) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not self._inside(path):
                self.seen.append(f"opens {path} for writing")
        elif event == "import" and str(arguments[1] or "").startswith(self.home):
            self.seen.append(f"imports {arguments[0]} from {arguments[1]}")
        elif event in EVENTS and not (arguments and isinstance(arguments[0], str) and self._inside(arguments[0])):
            self.seen.append(f"{event} {arguments}")

    def _inside(self, path: str) -> bool:
        path = os.path.abspath(path)
        nameless = path == tempfile.gettempdir()  # a temporary file that has no name
        return nameless or path.startswith((self.home, os.devnull)) or "__pycache__" in path or "/torch_" in path

    @contextmanager
    def watching(self, home: Path) -> Iterator[list[str]]:
        self.home, self.seen, self.armed = str(home), [], True
        try:
            yield self.seen
        finally:
            self.armed = False


@pytest.fixture(scope="session")
def guard() -> Guard:
    return Guard()


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """At most so many bytes more than now; beyond that an allocation fails."""
    now = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def fuzz_home(chaos_home: Path) -> Iterator[Path]:
    home = chaos_home / "fuzz"
    shutil.copytree(chaos_home / "template", home)
    manifest = FeatureSet(home / SET).manifest
    header = {"format": 2, "fingerprint": manifest["encoder"]["fingerprint"], "encoder": "clip"}
    lines = (header | {"features": manifest["features"]}, {"shard": manifest["shards"][0], "rejected": []})
    (home / SET / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (home / "recipe.toml").write_text(
        '[about]\ntitle = "t"\npaper = "p"\n[precompute]\nencoder = "clip"\nkinds = ["pooled"]\n[train]\n'
        'adapter = "mlp4"\nlr = 1e-3\nbatch = 4\nsteps = 10\nlm = "x"\ncaption_prompt = ""\ndelimiters = ["a", "b"]\n'
        '[adapter.mlp4]\nsoft_prompt = 2\n[modality.audio]\nadapter = "mlp2"\n[full]\nwidth = 8\n'
    )
    np.save(home / "rows.npy", np.ones((3, 8), np.float32))
    save_file({"a": torch.ones(8), "b": torch.ones(2, 8)}, home / "rows.safetensors")
    yield home
    shutil.rmtree(home)


def attack(home: Path, target: Target, data: st.DataObject, guard: Guard) -> str:
    """Read a changed file; returns the kind of outcome. Fails with what a reader must not do."""
    path = home / target.file
    saved = {file: file.read_bytes() for file in (path, *_written(home, target))}
    path.write_bytes(target.mutate(data, path.read_bytes()))
    began = time.perf_counter()
    try:
        with guard.watching(home) as seen, memory_limit(MEMORY), redirect_stdout(StringIO()):
            target.read(home)
        kind = "read"
    except UserError as error:
        kind = "refused"
        assert "\n" not in str(error)[:2000], error
    finally:
        for file, before in saved.items():
            file.write_bytes(before)
    assert not seen, seen
    assert time.perf_counter() - began < SECONDS * _slowness()
    return kind


def _written(home: Path, target: Target) -> list[Path]:
    """Files that a reader may write itself, as a resumed run cuts its log back."""
    if target.read is read_run:
        return [home / RUN / name for name in ("metrics.jsonl", "samples.md")]
    return [home / SET / "index.safetensors"] if target.read in (read_set, continue_set) else []


def _slowness() -> float:
    """How many processes share a core, at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def run_target(home: Path, target: Target, guard: Guard, examples: int, counts: Counter[str], seed: bool) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=seed, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def try_one(data: st.DataObject) -> None:
        counts[attack(home, target, data, guard)] += 1

    try_one()


def _id(target: Target) -> str:
    return f"{target.read.__name__}-{target.file.rpartition('/')[2]}"


@pytest.mark.parametrize("target", TARGETS, ids=_id)
def test_a_few_changed_files(fuzz_home: Path, guard: Guard, target: Target) -> None:
    torch.set_num_threads(1)
    counts = Counter[str]()
    run_target(fuzz_home, target, guard, target.weight, counts, seed=True)
    assert counts.total() > target.weight / 2


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_changed_files(fuzz_home: Path, guard: Guard) -> None:
    """At least 10,000, of all files; prints how many were refused and how many read."""
    counts, wrong = Counter[str](), list[str]()
    for target in TARGETS:
        try:
            run_target(fuzz_home, target, guard, 42 * target.weight, counts, seed=False)
            print(_id(target), dict(counts), flush=True)
        except BaseException as error:
            wrong.append(f"{_id(target)}: {error!r}"[:2000])
    print(dict(counts), *wrong, sep="\n")
    assert not wrong and counts.total() >= 10_000
