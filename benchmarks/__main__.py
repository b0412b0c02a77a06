"""Run all benchmarks, or the named ones: `python -m benchmarks [NAME ...] [--rounds 5] [--json FILE]`."""

import json
import pkgutil
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

import benchmarks
from periscope import console  # noqa: F401 - sets how threads wait, as the scripts do


def main(
    names: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    rounds: int = 5,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Run each benchmark in a process of its own and print one line per ratio.

    Args:
        names: Benchmarks to run; all if none is named.
        rounds: Rounds of each variant; the median counts.
        json_file: Also write the results to this file.
    """
    known = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")]
    if wrong := sorted(set(names) - set(known)):
        raise SystemExit(f"no benchmark {wrong[0]!r}; there are {', '.join(known)}")
    found: dict[str, dict] = {}
    for name in tqdm(names or known, unit=" benchmarks", leave=False):
        with benchmarks.process_of_its_own() as process:
            measured = process.submit(benchmarks.measure, name, rounds).result()
        if not measured:
            tqdm.write(f"{name} measures a GPU, and torch finds none here")
        found |= measured
    for name, row in found.items():
        more = "  ".join(f"{key} {_short(value)}" for key, value in row.items() if key != "ratio")
        print(f"{name:<44} {row['ratio']:6.2f}   {more}")
    if json_file:
        json_file.write_text(json.dumps(found, indent=1) + "\n")


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    tyro.cli(main)
