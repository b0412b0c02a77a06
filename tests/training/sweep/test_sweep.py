"""A sweep's runs are what separate runs would have been; it goes on where it was, and says what failed."""

import json
import os
import signal
import sys
import time
from datetime import timedelta

import pytest
import torch
from processes import finish, forks, processes, train
from safetensors.torch import load_file

from periscope import train as train_script
from periscope.errors import AdapterError, RunError
from periscope.training.config import Request
from periscope.training.sweep.combinations import combinations
from periscope.training.sweep.picture import figure_of
from periscope.training.sweep.sweep import outcome, ranked, table

BASE = (
    *("--features", "features/photos", "--lm", "lm", "--device", "cpu", "--soft-prompt", "2", "--token-noise", "0.2"),
    *("--batch", "16", "--eval-every", "4", "--steps", "8"),
)
SWEEP = ("--sweep", "adapter=mlp2,linear3", "lr=1e-2,1e-3")
NAMES = ["mlp2-lr0.01", "mlp2-lr0.001", "linear3-lr0.01", "linear3-lr0.001"]


@pytest.fixture(scope="module")
def many(home):
    assert finish(processes(lambda rank: train(*BASE, *SWEEP, "--name", "many"), 1)) == [0]
    return home / "runs" / "many"


def result(run) -> tuple[dict, list]:
    """Weights and losses; not the look at the held-out texts that a stopped run takes besides."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    looks = [(row["step"], row["heldout"]) for row in rows if "heldout" in row and row["step"] % 4 == 0]
    losses = [[(row["step"], row["loss"]) for row in rows if "loss" in row], looks]
    return load_file(run / "steps" / "000008" / "adapter" / "adapter.safetensors"), losses


def same(run, other) -> bool:
    (one, losses), (two, others) = result(run), result(other)
    return losses == others and one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@forks
def test_each_run_is_bit_for_bit_a_run_of_its_own(home, many):
    assert sorted(path.name for path in many.iterdir() if path.is_dir()) == sorted(NAMES)
    # the last of the sweep, after three others on the same language model; and the first
    for name, flags in ((NAMES[3], ("linear3", "1e-3")), (NAMES[0], ("mlp2", "1e-2"))):
        alone = (*BASE, "--adapter", flags[0], "--lr", flags[1], "--name", f"alone-{name}")
        assert finish(processes(lambda rank, alone=alone: train(*alone), 1)) == [0]
        assert same(many / name, home / "runs" / f"alone-{name}")
    assert not same(many / NAMES[1], home / "runs" / f"alone-{NAMES[0]}")


@forks
def test_it_is_compared_in_a_table_and_a_picture(many):
    found = json.loads((many / "sweep.json").read_text())
    assert [row["name"] for row in found["runs"]] == NAMES and found["language_model"]["loaded"] == 1
    assert all(row["steps"] == row["of"] == 8 and len(row["curve"]) == 2 for row in found["runs"])
    first, last = found["runs"][0], found["runs"][3]
    assert first["choice"] == {"adapter": "mlp2", "lr": 0.01} and last["tokens"] == 3
    weights = load_file(many / NAMES[0] / "steps" / "000008" / "adapter" / "adapter.safetensors")
    assert first["parameters"] == sum(weight.numel() for weight in weights.values())
    page = (many / "sweep.md").read_text()
    order = [page.index(f"| {row['name']} |") for row in ranked(found["runs"])]
    assert order == sorted(order) and "one copy of the language model" in page
    assert (many / "sweep.png").read_bytes()[:4] == b"\x89PNG"


@forks
def test_a_stopped_sweep_goes_on_by_the_same_command(home, many, capfd):
    command = (*BASE, *SWEEP, "--name", "stopped")
    (started,) = processes(lambda rank: train(*command), 1)
    second = home / "runs" / "stopped" / NAMES[1] / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not second.exists():
        assert started.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(started.pid, signal.SIGINT)
    (left,) = finish([started])
    said = capfd.readouterr().out
    assert left == (130 if "the sweep stopped there" in said else 0)
    first = home / "runs" / "stopped" / NAMES[0]
    kept = (first / "last").stat().st_mtime_ns
    if "the sweep stopped there; go on with the same command and --name stopped" in said:
        assert not (first.parent / NAMES[3]).exists()
    killed = home / "runs" / "stopped" / NAMES[3]
    if not killed.exists():
        killed.mkdir()
        (killed / "config.toml").write_text("steps = 8\n")  # as one that was killed before its first checkpoint
    assert finish(processes(lambda rank: train(*command), 1)) == [0]
    assert (first / "last").stat().st_mtime_ns == kept
    assert all(same(many / name, home / "runs" / "stopped" / name) for name in NAMES)


@forks
def test_a_combination_that_fails_is_told_and_the_others_go_on(home, capfd):
    arguments = (*BASE[:-4], "--steps", "2", "--sweep", "adapter=epalm,mlp2", "--name", "partly")
    assert finish(processes(lambda rank: train(*arguments), 1)) == [1]
    said = capfd.readouterr()
    assert "failed: epalm: features/photos holds pooled, patches, not layers" in said.out
    assert said.err.count("error: 1 of 2 combinations failed: epalm") == 1
    assert (home / "runs" / "partly" / "mlp2" / "last").read_text() == "000002\n"
    assert "| epalm | failed: features/photos holds pooled" in (home / "runs" / "partly" / "sweep.md").read_text()
    again = (*BASE[:-4], "--steps", "3", "--sweep", "adapter=mlp2", "--name", "partly")
    assert finish(processes(lambda rank: train(*again), 1)) == [1]
    assert "was started with steps 2, not 3" in capfd.readouterr().out


@pytest.mark.slow
@forks
def test_a_combination_that_fails_on_one_rank_alone_ends_the_sweep(home, monkeypatch, capfd):
    """The others wait for that rank in the middle of a training, and can't be told to leave it."""
    command = (*BASE, "--sweep", "adapter=mlp2,linear3", "--name", "alone")
    monkeypatch.setattr("periscope.training.distributed.BARRIER_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr("periscope.console.GRACE_SECONDS", 0)

    def one_fails(rank: int) -> None:
        whole = train_script.train

        def fails(config, *rest):
            if rank == 1 and config.adapter == "linear3":
                raise RunError("only here")
            return whole(config, *rest)

        train_script.train = fails
        train(*command)

    assert finish(processes(one_fails)) == [1, 1]
    said = capfd.readouterr().err
    assert "error in process 1: only here" in said and "error: another process of this training is gone" in said
    runs = home / "runs" / "alone"
    assert (runs / "mlp2" / "last").exists() and not (runs / "linear3" / "last").exists()
    assert finish(processes(lambda rank: train(*command), 1)) == [0]
    assert [row["failed"] for row in json.loads((runs / "sweep.json").read_text())["runs"]] == ["", ""]


def test_values_are_typed_as_the_flags_are():
    found = combinations(Request(sweep=("batch=8,16", "eos=True,False", "lm=a/b,c", "adapter=mlp8")))
    assert len(found) == 8 and len({one.name for one in found}) == 8
    assert [one.choice["lm"] for one in found] == ["a/b"] * 4 + ["c"] * 4, "one language model at a time"
    first, second, *_ = (one.request.flags for one in found)
    assert first["batch"] == 8 and first["eos"] is True and second["eos"] is False
    assert found[0].name == "batch8-eosTrue-lma_b-mlp8"


def test_values_of_lora_have_commas_of_their_own():
    found = combinations(Request(sweep=("lora=r=8,alpha=16,r=64, r=4,alpha=4", "lr=1e-3")))
    assert [one.request.flags["lora"] for one in found] == ["r=8,alpha=16", "r=64", " r=4,alpha=4"]
    assert [one.name for one in found] == ["r8_alpha16-lr0.001", "r64-lr0.001", "r4_alpha4-lr0.001"]
    with pytest.raises(AdapterError, match=r"--lora '8,16' isn't of the form"):
        combinations(Request(sweep=("lora=8,16",)))


@pytest.mark.parametrize(
    "given, said",
    [
        (Request(sweep=("adaptr=mlp8",)), "no flag 'adaptr'; did you mean adapter"),
        (Request(sweep=("name=a,b",)), "no flag 'name'"),
        (Request(sweep=("lr",)), "must be one flag and its values"),
        (Request(sweep=("lr=1", "lr=2")), "must be one flag and its values"),
        (Request({"token_noise": 0.3}, sweep=("token-noise=0.1,0.2",)), "--token-noise is given and swept"),
    ],
)
def test_a_mistake_gets_one_sentence(given, said):
    with pytest.raises(RunError, match=said):
        combinations(given)


def test_a_value_of_the_wrong_type_ends_as_the_flag_itself_does(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit):
        combinations(Request(sweep=("lr=1e-3,fast",)))
    assert "--lr" in capsys.readouterr().err


def row(name: str, loss: float, failed: str = "") -> dict:
    curve = [[4, loss + 1], [8, loss]]
    heldout = {"real": loss, "shuffled": loss + 0.5, "none": 3.0}
    facts = {
        "steps": 8,
        "of": 8,
        "seconds": 4.0,
        "seconds_a_step": 0.5,
        "tokens": 2,
        "parameters": 1234,
        "best_step": 8,
    }
    made = {"name": name, "choice": {}, "failed": failed, "curve": [] if failed else curve}
    return made if failed else made | facts | {"heldout": heldout}


def test_the_best_stands_first_and_failures_last():
    lines = table([row("bad", 0, "no patches | here"), row("worse", 2.0), row("better", 1.5)]).splitlines()
    assert lines[2] == "| better | 1,234 | 2 | 1.5000 | 2.0000 | 3.0000 | 8 | 8 | 0.5 | 4 |"
    assert lines[3].startswith("| worse |") and lines[4].startswith("| bad | failed: no patches / here |")


def test_the_picture_has_a_line_and_a_bar_for_each_run():
    curves, bars = figure_of([row("a", 1.0), row("$b$", 2.0), row("bad", 0, "no")]).axes
    assert [bar.get_width() for bar in bars.patches] == [1.0, 2.0]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["a", r"\$b\$"]
    (controls,) = bars.lines
    assert controls.get_xdata().tolist() == [1.5, 2.5] and controls.get_fillstyle() == "none"
    assert [line.get_xydata()[-1].tolist() for line in curves.lines] == [[8, 1.0], [8, 2.0]]
    assert curves.get_xlabel() == "step" and "nats per token" in curves.get_ylabel() and curves.get_legend()
    assert "no run" in figure_of([row("bad", 0, "no")]).get_suptitle()


def test_nothing_is_said_of_a_run_that_never_began(tmp_path):
    assert outcome(tmp_path / "none", {"lr": 1.0}, "why") == {
        "name": "none", "choice": {"lr": 1.0}, "failed": "why", "curve": []
    }  # fmt: skip
