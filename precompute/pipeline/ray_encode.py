"""The same encoding on many processes or machines, with Ray Data: tasks read, actors encode, this process writes.

https://docs.ray.io/en/latest/data/data.html. Ray schedules, repeats what a dead worker was doing, and waits for the
writer; this module defines what one task and one actor do.
"""

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from periscope.bars import progress_bar
from periscope.device import rules_of
from periscope.errors import MediaError, PrecomputeError
from periscope.paths import PACKAGE
from periscope.precompute.decoding import shared_pool
from periscope.precompute.media.limits import set_limits
from periscope.precompute.pipeline.encode import forward, pick, to_stored
from periscope.precompute.pipeline.reader import Sample, read_samples
from periscope.precompute.pipeline.task import EncodingTask
from periscope.precompute.sources import Medium
from periscope.shards.write import SetWriter

BLOCK = 256  # media that Ray hands out, and repeats when a worker dies, at once
DRAWN = "demo/media"  # lies inside the package in a clone, and stays here


def encode_on_ray(
    todo: dict[str, Medium], task: EncodingTask, writer: SetWriter, address: str, batch: int, per_shard: int
) -> None:
    """Encode media on a Ray cluster into the shards of `writer`, in whatever order they get done.

    address: "auto" for the cluster this machine belongs to or, without one, a local one; else a cluster's address.
    Raises PrecomputeError when Ray is missing, the cluster can't be reached, Ray gives up, or a filter is asked for
    that needs all media in order.
    """
    if task.filters.drop_duplicates or task.filters.similarity:
        raise PrecomputeError("--duplicates drop and --similarity look at media in order: leave out --ray")
    if not rules_of(task.encoder.device).ranks:
        raise PrecomputeError(f"--ray shares work among NVIDIA GPUs or CPUs, not {rules_of(task.encoder.device).name}")
    rows = _results(todo, task, address, batch)
    print("encoding on Ray with", task.encoder.name)
    with progress_bar(desc="encoding", total=len(todo), unit=" media", smoothing=0.1, mininterval=0.5) as bar:
        for first in rows:
            with writer.shard() as shard:
                for row in chain([first], islice(rows, per_shard - 1)):
                    origin, digest = todo[row["key"]].origin, row["digest"]
                    if row["reason"]:
                        shard.reject(origin, row["reason"], row["detail"], digest)
                    else:
                        info = {"modality": task.encoder.modality, "origin": origin, "sha256": digest}
                        shard.add(row["key"], load_tensors(row["data"]), info)
                    bar.update()


def _results(todo: dict[str, Medium], task: EncodingTask, address: str, batch: int) -> Iterator[dict]:
    """One row for each medium, once: its key, its content hash, what is to be stored or the reason why nothing is."""
    ray = _connect(address)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    gpus = int(ray.cluster_resources().get("GPU", 0))
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    device = task.encoder.device
    task.encoder.to("cpu")
    shared = [ray.put(task)]  # in a list, so that Ray passes the reference and not what it refers to
    task.encoder.to(device)
    rows = [{"key": key, "medium": medium} for key, medium in todo.items()]
    results = (
        ray.data.from_items(rows, override_num_blocks=-(-len(rows) // BLOCK))
        .map_batches(_decode, fn_args=(shared,), batch_size=batch)
        .map_batches(
            _Encode,
            fn_constructor_args=(shared,),
            batch_size=batch,
            compute=ray.data.ActorPoolStrategy(size=min(gpus or cores, -(-len(rows) // batch))),
            num_cpus=0 if gpus else 1,
            num_gpus=1 if gpus else 0,
        )
    )
    seen: set[str] = set()
    try:
        for row in results.iter_rows():
            if row["key"] not in seen:
                seen.add(row["key"])
                yield row
    except ray.exceptions.RayError as error:
        raise PrecomputeError(f"Ray gave up ({str(error).strip().splitlines()[-1]})") from error
    if missing := todo.keys() - seen:
        raise PrecomputeError(
            f"Ray lost {len(missing)} media ({todo[min(missing)].origin}): run the same command again"
        )


def _connect(address: str) -> Any:
    """The library, connected to a cluster whose workers can import Periscope."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise PrecomputeError("--ray needs Ray: pip install 'periscope-adapters[ray]'") from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():
        return ray
    try:
        with TemporaryDirectory(prefix="periscope-ray-") as folder:
            stage_package(Path(folder))
            ray.init(address=address, runtime_env={"working_dir": folder}, **quiet)
    except ConnectionError as error:
        if address != "auto":
            raise PrecomputeError(f"no Ray cluster answers at {address}: {error}") from error
        ray.init(address="local", include_dashboard=False, runtime_env={"env_vars": _import_path()}, **quiet)
    return ray


def stage_package(folder: Path) -> None:
    """Copy this package into `folder` under its name, whatever its own folder is called: Ray sends that folder to other
    machines and starts the workers in it, so that they import this very code.
    """
    shutil.copytree(PACKAGE, folder / "periscope", ignore=_not_shipped)


def _not_shipped(folder: str, names: list[str]) -> set[str]:
    """The names in a folder that are no part of the package: a clone also holds data, runs and tests."""
    here = Path(folder).relative_to(PACKAGE)
    skipped = {name for name in names if name == "__pycache__" or (here / name).as_posix() == DRAWN}
    if here == Path():
        packages = {name for name in names if Path(folder, name, "__init__.py").is_file()}
        skipped |= {name for name in names if name not in packages and not name.endswith(".py")}
    return skipped


def _import_path() -> dict[str, str]:
    """The environment in which a worker on this machine imports the Periscope that this process has.

    Empty where Python finds it without help, installed as a wheel or from a clone.
    """
    holders = [entry for entry in sys.path if entry and (Path(entry) / "periscope" / "__init__.py").is_file()]
    given = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([*holders[:1], *([given] if given else [])])} if holders else {}


@lru_cache(maxsize=1)
def _fetched(reference: object) -> EncodingTask:
    import ray

    task: EncodingTask = ray.get(reference)
    set_limits(task.limits)
    return task


def _decode(batch: dict, shared: list) -> dict:
    """A batch of media -> what the encoder takes of each, as safetensors, or the reason why there is nothing."""
    task = _fetched(shared[0])
    keys = [str(key) for key in batch["key"]]
    samples = read_samples(list(zip(keys, batch["medium"], strict=True)), task, shared_pool())
    rows = [_row(sample) for sample in samples]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _row(sample: Sample) -> dict:
    row = {"key": sample.key, "digest": sample.digest, "data": b"", "reason": "", "detail": ""}
    if sample.inputs is not None:
        row["data"] = save_tensors({"views": torch.stack(sample.inputs)})
    if sample.error is not None:
        row |= {"reason": sample.error.reason, "detail": sample.error.detail}
    return row


class _Encode:
    """The actor: holds one copy of the encoder, on its GPU if Ray gave it one."""

    def __init__(self, shared: list):
        self.task = _fetched(shared[0])
        if torch.cuda.is_available():
            self.task.encoder.to("cuda")
        else:
            torch.set_num_threads(1)

    def __call__(self, batch: dict) -> dict:
        rows = [{name: batch[name][i] for name in batch} for i in range(len(batch["key"]))]
        decoded = [(row, load_tensors(row["data"])["views"]) for row in rows if row["data"]]
        inputs = [view for _, views in decoded for view in views]
        features = forward(self.task.encoder, inputs, self.task.kinds) if inputs else {}
        for number, (row, _) in enumerate(decoded):
            try:
                row["data"] = save_tensors(to_stored(pick(features, number, self.task.views), self.task.features))
            except MediaError as error:
                row |= {"data": b"", "reason": error.reason, "detail": error.detail}
        return {name: [row[name] for row in rows] for name in rows[0]}
