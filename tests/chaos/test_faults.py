"""A failing disk and a kill at each change of the file system: nothing is lost, and the next run ends as if nothing
had happened.
"""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from chaos.faults import KILLED, Fault, Outcome, files_of, run_with
from chaos.scenarios import SCENARIOS, Scenario, scratch

KINDS = ("kill", "ENOSPC", "EIO", "EROFS")
GROWING = {"metrics.jsonl", "progress.jsonl"}  # files to which lines are added in place
SHORT = {"precompute": 4, "extend": 4, "train": 1, "eval": 1, "merge": 3, "recode": 3, "export": 1}  # faults by default


class Bench:
    """A template of everything the commands need, and the place where they run; in memory where that is possible."""

    def __init__(self, home: Path):
        self.home, self.root = home, home / "work"
        self.happened = Counter[str]()  # faults that a command met, by kind

    @cache  # noqa: B019 there is one bench
    def reference(self, scenario: Scenario) -> tuple[Outcome, dict[str, str], dict[str, str]]:
        """A run without a fault: what it did, what it made, and the same with times and all."""
        scenario.start(self.home / "template", self.root)
        outcome = run_with(scenario.command, self.root, self.home / "log")
        assert outcome.status == 0, outcome.said
        return outcome, scenario.result(self.root), files_of(self.root / scenario.made)

    def try_fault(self, scenario: Scenario, fault: Fault) -> list[str]:
        """Let a command meet a fault and run it again; what was wrong, in sentences."""
        smooth, wanted, exact = self.reference(scenario)
        scenario.start(self.home / "template", self.root)
        before = files_of(self.root / scenario.made) if (self.root / scenario.made).is_dir() else {}
        outcome = run_with(scenario.command, self.root, self.home / "log", fault)
        self.happened[fault.kind] += outcome.status == KILLED or len(outcome.calls) >= fault.at
        wrong = [*_words(outcome, fault), *self._files(scenario, before, smooth, exact)]
        call = smooth.calls[min(fault.at, len(smooth.calls)) - 1].split()[0]
        if fault.kind in ("ENOSPC", "EIO") and call not in ("unlink", "rmdir"):
            wrong += [f"{name} was left" for name in _scratch(self.root)]
        again = run_with(scenario.again(self.root), self.root, self.home / "log")
        if "Traceback" in again.said:
            wrong.append(f"the second run: {again.said[-600:]}")
        made = scenario.result(self.root)
        for name in sorted({*made, *wanted}):
            if made.get(name) != wanted.get(name):
                wrong.append(f"{name} isn't what a run without a fault makes ({again.said[-300:]})")
        wrong += [f"{name} was left after the second run" for name in _scratch(self.root)]
        return [f"{scenario.name}, {fault}, {call}: {sentence}" for sentence in wrong]

    def _files(self, scenario: Scenario, before: dict[str, str], smooth: Outcome, exact: dict[str, str]) -> list[str]:
        """Files under their final names that are neither as before nor as some moment of a whole run has them."""
        folder, wrong = self.root / scenario.made, []
        found = files_of(folder) if folder.is_dir() else {}
        for name, digest in found.items():
            path = folder / name
            versions = smooth.versions.get(f"{scenario.made}/{name}", set()) | {before.get(name), exact.get(name)}
            if scratch(name) or digest in versions or path.name in ("timing.json", "environment.json"):
                continue
            if path.name in GROWING:
                lines = path.read_bytes().splitlines()
                if all(_is_json(line) for line in lines[:-1]):
                    continue
            wrong.append(f"{name} holds what no run writes there")
        wrong += [f"{name} was lost" for name in before if name in exact and name not in found]
        return wrong


def _words(outcome: Outcome, fault: Fault) -> list[str]:
    """What is wrong with what a command said of its fault."""
    if outcome.late:
        return [f"it never ended: {outcome.said[-600:]}"]
    if fault.kind == "kill":
        return [] if outcome.status in (0, KILLED) else [f"status {outcome.status}: {outcome.said[-600:]}"]
    if outcome.status == 0:
        return []  # what it couldn't write wasn't needed
    if "Traceback" in outcome.said or outcome.status != 1 or not outcome.sentence:
        return [f"status {outcome.status}: {outcome.said[-1500:]}"]
    mend = ("free some space", "make it writable", "check it", "allow this user")
    return (
        [] if any(words in outcome.sentence for words in mend) else [f"it doesn't say what to do: {outcome.sentence}"]
    )


def _scratch(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in root.rglob("*") if scratch(path.name)]


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


@pytest.fixture(scope="module")
def bench(chaos_home: Path) -> Bench:
    return Bench(chaos_home)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_few_faults(bench: Bench, scenario: Scenario) -> None:
    """Of each kind in turn, spread over the command's calls; the slow test tries all of them."""
    calls = len(bench.reference(scenario)[0].calls)
    assert calls > 20
    count = SHORT[scenario.name]
    start = SCENARIOS.index(scenario)
    faults = [Fault(KINDS[(start + i) % 4], 1 + (2 * i + 1) * calls // (2 * count)) for i in range(count)]
    assert [sentence for fault in faults for sentence in bench.try_fault(scenario, fault)] == []


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kinds", [KINDS[:1], KINDS[1:]], ids=" ".join)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_fault(bench: Bench, scenario: Scenario, kinds: tuple[str, ...]) -> None:
    """A kill at every call; and at every call one of the errors. About 650 of each over all commands."""
    bench.happened.clear()
    calls, wrong = len(bench.reference(scenario)[0].calls), list[str]()
    for fault in (Fault(kinds[at % len(kinds)], at) for at in range(1, calls + 1)):
        found = bench.try_fault(scenario, fault)
        print(scenario.name, fault, dict(bench.happened), *found, flush=True)
        wrong += found
    assert wrong == [] and bench.happened.total() == calls
