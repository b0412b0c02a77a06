"""The run folder: never overwritten, complete checkpoints, logs that can be cut back."""

import json
import shutil

import pytest
import torch
from toy_runs import run_at, save_step

from periscope.errors import RunError
from periscope.training.run import Run, newest_run
from periscope.training.step import load_optimizer_state, optimizer_state


def test_a_run_is_never_overwritten_and_describes_itself(tmp_path, monkeypatch):
    run = run_at(tmp_path / "r")
    assert run.config.prompt.delimiters == ("Scene:", "\n") and run.config.lm == 'a"b\\c'
    assert "epochs" not in (run.path / "config.toml").read_text()
    assert (
        json.loads((run.path / "environment.json").read_text())["packages"]["torch"] == torch.__version__.split("+")[0]
    )
    save_step(run, 1)
    with pytest.raises(RunError, match=r"never overwritten.*--resume"):
        run_at(tmp_path / "r")
    shutil.rmtree(run.path / "steps")
    (run.path / "last").unlink()
    with monkeypatch.context() as broken:
        broken.setattr("periscope.training.run.platform.platform", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_at(tmp_path / "s")
    assert not (tmp_path / "s").exists() and run_at(tmp_path / "s").config == run.config
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(RunError, match="has no checkpoint"):
        run.step_folder()
    with pytest.raises(RunError, match="not a run"):
        Run.open(tmp_path)
    assert newest_run(tmp_path) == run.path
    with pytest.raises(RunError, match="no run in"):
        newest_run(run.path)


def test_checkpoints_are_whole_pruned_and_pointed_at(tmp_path):
    run = run_at(tmp_path / "r")
    save_step(run, 10, best=True)
    for step in (20, 30, 40):
        save_step(run, step)
    assert sorted(p.name for p in (run.path / "steps").iterdir()) == ["000010", "000030", "000040"]
    assert run.step_folder().name == "000040" and run.step_folder("best").name == "000010"
    state = run.load_state("cpu")
    assert state["facts"]["step"] == 40 and state["tensors"]["x"].item() == 40
    (run.path / "last").write_text("../../elsewhere\n")
    with pytest.raises(RunError):
        run.step_folder()
    (run.path / "last").write_text("000030\n")
    assert save_step(run, 40).name == "000040" and run.step_folder().name == "000040"  # killed before `last` was moved
    (run.path / "steps" / "000040" / "state" / "tensors.safetensors").write_bytes(b"rubbish")
    with pytest.raises(RunError, match="can't be read"):
        run.load_state("cpu")


def test_metrics_and_samples_are_cut_back_to_the_checkpoint(tmp_path):
    run = run_at(tmp_path / "r")
    for step in range(1, 31):
        run.log(step=step, loss=1.0)
    for step in (10, 20, 30):
        run.write_samples(step, [{"media": "m", "prompt": "a|b", "answer": f"{step}\nx", "reference": "r"}])
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 31, "lo')
    run.cut_back(20)
    assert [row["step"] for row in run.metrics()] == list(range(1, 21))
    text = (run.path / "samples.md").read_text()
    assert text.count("## step") == 2 and "| m | a\\|b | 20 x | r |" in text and "30" not in text


def test_samples_show_their_pictures_by_paths_from_the_page(tmp_path):
    run, picture = run_at(tmp_path / "runs" / "r"), tmp_path / "features" / "my set" / "heldout-thumbnails" / "k|.jpg"
    sample = {"media": "a.png", "prompt": "(caption)", "answer": "x", "reference": "r"}
    run.write_samples(10, [sample | {"pictures": [picture, picture]}, sample | {"pictures": []}])
    shown = "![](../../features/my%20set/heldout-thumbnails/k%7C.jpg)"
    text = (run.path / "samples.md").read_text()
    assert (
        f"| picture | medium | prompt | answer | reference |\n|---|---|---|---|---|\n| {shown} {shown} | a.png |"
        in text
    )
    assert "|  | a.png | (caption) | x | r |" in text


def test_optimizer_state_round_trip():
    def step(optimizer, parameters):
        for p in parameters:
            p.grad = torch.ones_like(p) * 0.1
        optimizer.step()

    a, b = [torch.nn.Parameter(torch.arange(4.0)) for _ in range(2)]
    one, two = torch.optim.AdamW([a]), torch.optim.AdamW([b])
    step(one, [a])
    load_optimizer_state(two, optimizer_state(one))
    b.data.copy_(a.data)
    step(one, [a])
    step(two, [b])
    assert torch.equal(a, b)
