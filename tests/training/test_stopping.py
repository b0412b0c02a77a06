"""A training stopped or killed at a bad moment keeps its checkpoint and `best`, and resumes to the same bits."""

import json
import os
import random
import signal
import threading
import time

import pytest
import torch
from safetensors.torch import load_file
from script_runs import here

from periscope.training import session as training_session
from periscope.training.run import Run
from periscope.training.session import Session

TRAIN = (
    *("train.py", "--features", "features/photos", "--lm", "lm", "--adapter", "mlp3", "--token-noise", "0.2"),
    *("--batch", "16", "--steps", "12", "--eval-every", "4"),
)


@pytest.fixture
def train(home, monkeypatch, capsys):
    return lambda *arguments, status=0: here(home, monkeypatch, capsys, *arguments, status=status)


@pytest.fixture
def whole(home, train):
    run = home / "runs" / "uninterrupted"
    if not run.exists():
        train(*TRAIN, "--name", run.name)
    return run


def same(run, other):
    """The same weights, optimizer, random state, metrics and pointers."""
    for step in ("last", "best"):
        assert (run / step).read_text() == (other / step).read_text()
        folders = [path / "steps" / (path / step).read_text().strip() for path in (run, other)]
        for file in ("adapter/adapter.safetensors", "state/tensors.safetensors"):
            one, two = (load_file(folder / file) for folder in folders)
            assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
        assert len({(folder / "adapter" / "adapter.json").read_text() for folder in folders}) == 1
    results = [
        [{name: row.get(name) for name in ("step", "loss", "heldout", "scores")} for row in Run(path).metrics()]
        for path in (run, other)
    ]
    assert results[0] == results[1]
    assert (run / "samples.md").read_text() == (other / "samples.md").read_text()


@pytest.mark.parametrize("step", [6, 8, 12])
def test_a_stop_saves_at_once_and_evaluates_when_resumed(step, home, train, whole, monkeypatch):
    """Also at a step that is to be evaluated, and at the last one."""
    check, evaluated = Session.check_loss, []

    def checks(self, *given):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return check(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "check_loss", checks)
        one = training_session.evaluate_heldout
        patch.setattr(training_session, "evaluate_heldout", lambda *a: evaluated.append(1) or one(*a))
        said = train(*TRAIN, "--name", f"stopped-{step}", status=130)
    run = home / "runs" / f"stopped-{step}"
    assert f"stopped after step {step}; go on with" in said and "done:" not in said
    assert int((run / "last").read_text()) == step and len(evaluated) == (step - 1) // 4
    assert "done:" in train("train.py", "--resume", f"runs/stopped-{step}")
    same(run, whole)


@pytest.mark.parametrize("at", [8, 12])
def test_a_stop_ends_an_evaluation_that_is_under_way(at, home, train, whole, monkeypatch):
    answers, seen = training_session.sample_answers, []

    def stops(*given):
        seen.append(1)
        if len(seen) == at // 4:
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the evaluation went on")
        return answers(*given)

    with monkeypatch.context() as patch:
        patch.setattr(training_session, "sample_answers", stops)
        assert f"stopped after step {at}; go on" in train(*TRAIN, "--name", f"ended-{at}", status=130)
    run = home / "runs" / f"ended-{at}"
    assert int((run / "last").read_text()) == at
    assert [row["step"] for row in Run(run).evaluations(99)] == list(range(4, at, 4))
    train("train.py", "--resume", f"runs/ended-{at}")
    same(run, whole)


def test_an_evaluation_may_draw_random_numbers(home, train, whole, monkeypatch):
    answers = training_session.sample_answers
    monkeypatch.setattr(training_session, "sample_answers", lambda *a: torch.rand(3).tolist() and answers(*a))
    train(*TRAIN, "--name", "draws")
    same(home / "runs" / "draws", whole)


@pytest.mark.parametrize("method", ["log", "write_samples", "point_best"])
def test_best_is_right_wherever_an_evaluation_is_killed(method, home, train, whole, monkeypatch):
    """Killed just before or just after each of its writes."""
    original = getattr(Run, method)
    for after in (False, True):
        name = f"{method}-{after}"

        def kills(self, *given, **named):
            due = named.get("heldout") if method == "log" else True
            if due and (named.get("step") or given[0]) == 8:
                if after:  # noqa: B023
                    original(self, *given, **named)
                raise SystemExit("killed")
            return original(self, *given, **named)

        with monkeypatch.context() as patch, pytest.raises(SystemExit, match="killed"):
            patch.setattr(Run, method, kills)
            train(*TRAIN, "--name", name)
        train("train.py", "--resume", f"runs/{name}")
        same(home / "runs" / name, whole)
        losses = {row["step"]: row["heldout"]["real"] for row in Run(home / "runs" / name).evaluations(99)}
        assert int((home / "runs" / name / "best").read_text()) == min(losses, key=losses.get)


def test_a_stale_best_of_an_earlier_version_is_mended(home, train, whole):
    (whole / "best").write_text("000004\n")
    folder = whole / "steps" / "000012" / "state" / "facts.json"
    facts = json.loads(folder.read_text())
    run = Run.open(whole)
    session = type("Bare", (), {"run": run, "optimizer": torch.optim.AdamW([torch.zeros(1)])})()
    session.scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = training_session.Checkpoint({"generator": torch.get_rng_state()}, facts)
    Session.restore(session, state)
    losses = {row["step"]: row["heldout"]["real"] for row in run.evaluations(99)}
    assert session.best_rank[1] == min(losses.values()) and int((whole / "best").read_text()) == min(
        losses, key=losses.get
    )


@pytest.mark.slow
def test_ctrl_c_at_ten_random_moments(home, train):
    """A checkpoint of the last step within three seconds each time, and in the end the bits of a run left alone."""
    steps = ("--steps", "300", "--eval-every", "25", "--save-every", "1000", "--patience", "0")
    flags = (*TRAIN[: TRAIN.index("--steps")], *steps)
    assert "done:" in train(*flags, "--name", "left-alone")
    alone, run = home / "runs" / "left-alone", home / "runs" / "interrupted"
    seconds = sum(row.get("seconds", 0.0) for row in Run(alone).metrics())
    seed = time.time_ns()
    rng, arguments, waits = random.Random(seed), (*flags, "--name", run.name), []
    for _ in range(10):
        pressed, ended = [], threading.Event()

        def press(before: int, delay: float, pressed: list[float], ended: threading.Event) -> None:
            while len(Run(run).metrics()) == before and not ended.wait(0.01):
                pass
            if not ended.wait(delay):
                pressed.append(time.time())
                os.kill(os.getpid(), signal.SIGINT)

        given = (len(Run(run).metrics()), rng.uniform(0, seconds / 15), pressed, ended)
        thread = threading.Thread(target=press, args=given)
        thread.start()
        said = train(*arguments, status=130)
        ended.set()
        thread.join()
        assert pressed and "stopped after step" in said, f"it ended before it was interrupted (seed {seed})"
        waits.append((run / "last").stat().st_mtime - pressed[0])
        assert int((run / "last").read_text()) == max(row["step"] for row in Run(run).metrics())
        arguments = ("train.py", "--resume", "runs/interrupted")
    print(f"seconds from Ctrl-C to the checkpoint: {[round(wait, 2) for wait in waits]} (seed {seed})")
    assert max(waits) <= 3, f"seed {seed}"
    assert "done:" in train(*arguments)
    same(run, alone)
