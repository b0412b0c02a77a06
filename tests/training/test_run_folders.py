"""Run folders that two processes want, that were left half made, or whose features and language model moved."""

import json
import os
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file
from script_runs import here
from toy_runs import run_at, save_step

from periscope.adapters.io.checkpoint import write_folder
from periscope.errors import AdapterError, RunError
from periscope.training.run import Run, newest_run, refuse_taken

TRAIN = (
    *("train.py", "--features", "features/photos", "--lm", "lm", "--adapter", "mlp3", "--batch", "16"),
    *("--save-every", "2", "--eval-every", "4"),
)


@pytest.fixture
def train(home, monkeypatch, capsys):
    return lambda *arguments: here(home, monkeypatch, capsys, "train.py", *arguments)


def stop_after(monkeypatch, step):
    """Have a training fail after that many steps."""
    from periscope.training import step as training_step

    taken, one = [], training_step.take_step

    def stops(*given):
        if len(taken) == step:
            raise SystemExit("pulled the plug")
        taken.append(0)
        return one(*given)

    monkeypatch.setattr(training_step, "take_step", stops)


def test_a_run_is_trained_by_one_process_at_a_time(home, train, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_after(patch, 3)
        train(*TRAIN[1:], "--steps", "6", "--name", "shared")
    run = Run.open(home / "runs" / "shared")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    with run.locked(), pytest.raises(RunError, match="another training is writing runs/shared; wait for it to end"):
        train("--resume", "runs/shared")
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == before
    assert "done" in train("--resume", "runs/shared")


def test_a_run_is_locked_while_it_is_trained(home, train, monkeypatch):
    from periscope.training import step as training_step

    one = training_step.take_step

    def tries(*given):
        with pytest.raises(RunError, match="another training is writing"), Run(home / "runs" / "busy").locked():
            raise AssertionError("not locked")
        with pytest.raises(RunError, match="another training is writing"):
            refuse_taken(home / "runs" / "busy")
        return one(*given)

    monkeypatch.setattr(training_step, "take_step", tries)
    train(*TRAIN[1:], "--steps", "1", "--name", "busy")


def test_a_run_without_a_checkpoint_is_replaced(home, train, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_after(patch, 1)
        train(*TRAIN[1:], "--steps", "6", "--name", "early")
    with pytest.raises(RunError, match=r"has no checkpoint .* with --name early, which replaces it"):
        train("--resume", "runs/early")
    assert "done" in train(*TRAIN[1:], "--steps", "2", "--name", "early")
    assert [row["step"] for row in Run(home / "runs" / "early").metrics() if "loss" in row] == [1, 2]
    with pytest.raises(RunError, match=r"never overwritten.*--resume"):
        train(*TRAIN[1:], "--steps", "2", "--name", "early")


def test_a_first_checkpoint_that_nothing_points_at_yet_is_resumed(tmp_path):
    run = run_at(tmp_path / "r")
    save_step(run, 10)
    (run.path / "last").unlink()
    assert run.has_checkpoint() and run.step_folder().name == "000010" and not run.finished()
    with pytest.raises(RunError, match="never overwritten"):
        refuse_taken(run.path)


def test_other_folders_are_never_taken_for_a_run(tmp_path):
    for name in ("empty", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    for name in ("empty", "notes"):
        with pytest.raises(RunError, match="never overwritten"):
            run_at(tmp_path / name)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def dead_process() -> int:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def make_run(path):
    run_at(path)


def make_adapter(path):
    def write(folder):
        folder.mkdir()
        (folder / "config.toml").write_text("x")

    write_folder(path, write)


@pytest.mark.parametrize("make", [make_run, make_adapter])
def test_folders_of_other_names_are_left_alone(make, tmp_path):
    host = socket.gethostname()
    mine = [tmp_path / "pp.partial", tmp_path / f".pp.partial-{host}-1", tmp_path / ".pp.partial-elsewhere-999999999"]
    stale = tmp_path / f".pp.partial-{host}-{dead_process()}"
    for folder in (*mine, stale):
        folder.mkdir()
        (folder / "weights").write_text("precious")
    make(tmp_path / "pp")
    assert all((folder / "weights").read_text() == "precious" for folder in mine)
    assert not stale.exists() and (tmp_path / "pp" / "config.toml").is_file()
    assert sorted(tmp_path.iterdir()) == sorted([*mine, tmp_path / "pp"])


def test_what_can_not_be_written_leaves_nothing(tmp_path):
    def fails(folder):
        folder.mkdir()
        raise OSError("no space left")

    with pytest.raises(AdapterError, match="no space left"):
        write_folder(tmp_path / "pp", fails)
    assert not list(tmp_path.iterdir())


def test_a_half_made_run_is_not_the_newest(tmp_path):
    run = run_at(tmp_path / "r")
    shutil.copytree(run.path, tmp_path / ".s.partial-here-1")
    assert newest_run(tmp_path) == run.path


def test_a_run_goes_on_where_its_features_and_language_model_have_moved(home, train, monkeypatch, tmp_path):
    for name in ("moves", "stays"):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            stop_after(patch, 3)
            train(*TRAIN[1:], "--steps", "6", "--name", name)
    train("--resume", "runs/stays")
    features, lm = tmp_path / "elsewhere", tmp_path / "lm2"
    shutil.copytree(home / "features" / "photos", features)
    shutil.copytree(home / "lm", lm)
    run = Run.open(home / "runs" / "moves")
    other = features.with_name("other")
    shutil.copytree(features, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="the features changed since the checkpoint"):
        train("--resume", "runs/moves", "--features", str(other))
    weights = load_file(lm / "model.safetensors")
    next(iter(weights.values())).add_(1)
    shutil.copytree(lm, tmp_path / "lm3")
    save_file(weights, tmp_path / "lm3" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match="the language model changed since the checkpoint"):
        train("--resume", "runs/moves", "--lm", str(tmp_path / "lm3"))
    with pytest.raises(RunError, match="was started with features"):
        train("--resume", "runs/moves", "--features", f"{features}=1", f"{other}=2")
    assert run.config.features == ("features/photos",) and run.config.lm == "lm"
    train("--resume", "runs/moves", "--features", str(features), "--lm", str(lm))
    assert run.config.features == (str(features),) and run.config.lm == str(lm)
    one, two = (
        load_file(home / f"runs/{name}/steps/000006/adapter/adapter.safetensors") for name in ("moves", "stays")
    )
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_resume_says_how_to_name_the_new_place(home, train, monkeypatch, tmp_path):
    shutil.copytree(home / "features" / "photos", tmp_path / "here")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_after(patch, 3)
        train("--features", str(tmp_path / "here"), *TRAIN[3:], "--steps", "6", "--name", "lost")
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(
        RunError, match=r"reads .*/here, which isn't there; if it moved, add --features and its new place"
    ):
        train("--resume", "runs/lost")
    assert "done" in train("--resume", "runs/lost", "--features", str(tmp_path / "there"))
