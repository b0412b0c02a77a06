"""Several processes give what one gives: the same losses and adapter, whatever happens to one of them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import finish, forks, free_port, processes, train
from safetensors.torch import load_file
from toy_scenes import some_batch

from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template
from periscope.console import run
from periscope.errors import RunError
from periscope.training.data.dataset import Batch
from periscope.training.data.order import split_evenly
from periscope.training.distributed import Ranks, join
from periscope.training.step import take_step

ROOT = Path(__file__).parents[2]
TRAIN = (
    *("--features", "features/photos", "--lm", "lm", "--device", "cpu", "--adapter", "mlp3", "--soft-prompt", "2"),
    *("--token-noise", "0.2", "--batch", "16", "--steps", "12", "--eval-every", "6", "--save-every", "4"),
)


@pytest.fixture(scope="module")
def whole(home):
    assert finish(processes(lambda rank: train(*TRAIN, "--name", "whole"), 1)) == [0]
    return home / "runs" / "whole"


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [value for row in rows for value in ([row["loss"]] if "loss" in row else row["heldout"].values())]


def same(run: Path, other: Path, step: int = 12) -> None:
    assert losses(run) == pytest.approx(losses(other), abs=1e-5) and len(losses(run)) == 12 + 2 * 3
    one, two = (load_file(path / "steps" / f"{step:06d}" / "adapter" / "adapter.safetensors") for path in (run, other))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=2e-5)


@forks
def test_two_ranks_give_what_one_gives(home, whole):
    assert finish(processes(lambda rank: train(*TRAIN, "--name", "two"))) == [0, 0]
    same(home / "runs" / "two", whole)


def back_to(run: Path, step: int) -> None:
    """As it was when it was killed after that checkpoint."""
    for folder in (run / "steps").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)
    (run / "last").write_text(f"{step:06d}\n")


@forks
def test_a_run_goes_on_with_other_numbers_of_processes(home, whole):
    run = home / "runs" / "mixed"
    shutil.copytree(whole, run)
    for step, size in ((6, 2), (8, 1)):
        back_to(run, step)
        assert finish(processes(lambda rank: train("--resume", "runs/mixed", "--device", "cpu"), size)) == [0] * size
    same(run, whole)


@forks
def test_a_killed_rank_ends_the_others_and_the_run_goes_on(home, whole, capfd):
    run = home / "runs" / "killed"

    def dies(rank: int) -> None:
        if rank == 1:
            steps, one = [], AdaptedModel.loss

            def loss(*given):
                steps.append(1)
                if len(steps) == 7:
                    os.kill(os.getpid(), signal.SIGKILL)
                return one(*given)

            AdaptedModel.loss = loss
        train(*TRAIN, "--name", "killed")

    assert finish(processes(dies)) == [1, -signal.SIGKILL]
    assert "another process of this training is gone" in capfd.readouterr().err
    assert (run / "last").read_text() == "000006\n" and not list((run / "steps").glob("*.partial"))
    assert finish(processes(lambda rank: train("--resume", "runs/killed", "--device", "cpu"))) == [0, 0]
    same(run, whole)


@forks
def test_memory_that_runs_out_on_one_rank_halves_for_all(home, whole):
    def crowded(rank: int) -> None:
        one = AdaptedModel.loss

        def loss(self, texts, *rest):
            if rank == 1 and len(texts) > 3:
                raise torch.OutOfMemoryError("simulated")
            return one(self, texts, *rest)

        AdaptedModel.loss = loss
        train(*TRAIN, "--name", "crowded")

    assert finish(processes(crowded)) == [0, 0]
    same(home / "runs" / "crowded", whole)
    facts = json.loads((home / "runs" / "crowded" / "steps" / "000012" / "state" / "facts.json").read_text())
    assert facts["micro_batch"] in (2, 3)


@forks
def test_a_stop_on_any_rank_saves_once_and_all_leave(home):
    started = processes(lambda rank: train(*TRAIN, "--steps", "100000", "--name", "told"))
    metrics, deadline = home / "runs" / "told" / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert time.monotonic() < deadline and all(process.is_alive() for process in started)
        time.sleep(0.02)
    os.kill(started[1].pid, signal.SIGTERM)
    assert finish(started) == [0, 0]
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert int((home / "runs" / "told" / "last").read_text()) == last < 100000


def adapted(folder) -> AdaptedModel:
    lm = load_language_model(str(folder))
    torch.manual_seed(3)
    adapter = Adapter("mlp2", FeatureShape("pooled", 1, 6), lm.hidden_size, lm.embedding_rms, soft_prompt=2)
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, default_template(lm.tokenizer)), token_noise=0.3)


def shares(batch: Batch, parts: int) -> list[Batch]:
    found = []
    for part in split_evenly([sum(len(s.ids) for s in text) for text in batch.texts], parts):
        texts, keys = batch.texts[part], batch.keys[part]
        targets = sum(len(s.ids) for text in texts for s in text if s.target)
        found.append(Batch(texts, keys, batch.rows[part], targets, (len(batch), batch.targets), draw="0/0"))
    return found


@pytest.mark.parametrize("mean", ["token", "sample"])
def test_the_shares_gradients_add_up_to_the_whole_steps(language_model_folder, mean):
    """And the mean of each share's own mean, which is what averaging over the ranks would give, does not."""
    model = adapted(language_model_folder("llama"))
    model.loss_mean = mean
    batch = some_batch(model)
    batch.draw = "0/0"

    def gradient(of: Batch, count: int) -> torch.Tensor:
        model.adapter.zero_grad()
        (model.loss(of.texts, of.features, of.draw)[0] / count).backward()
        return torch.cat([p.grad.flatten() for p in model.adapter.parameters()])

    want = gradient(batch, batch.count(mean))
    parts = shares(batch, 2)
    assert [part.count(mean) for part in parts] == [batch.count(mean)] * 2 and 0 < len(parts[1]) < 7
    summed = sum(gradient(part, part.count(mean)) for part in parts)
    own = [sum(gradient(part, len(part) if mean == "sample" else part.targets) for part in parts) / 2][0]
    assert (summed - want).norm() < 1e-6 * want.norm()
    assert (own - want).norm() > 1e-3 * want.norm()


@forks
def test_an_overflow_on_one_rank_skips_the_step_on_all(language_model_folder, tmp_path):
    model = adapted(language_model_folder("llama"))
    parts = shares(some_batch(model), 2)

    def step(rank: int) -> None:
        ranks = join("cpu")
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        before = [p.clone() for p in model.adapter.parameters()]
        if rank == 1:
            next(model.adapter.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=1.0)
        for _ in range(2):
            take_step(model, optimizer, scaler, parts[rank], 8, 1.0, ranks)
        still = all(torch.equal(p, q) for p, q in zip(before, model.adapter.parameters(), strict=True))
        (tmp_path / str(rank)).write_text(json.dumps([scaler.get_scale(), still]))
        ranks.leave()

    assert finish(processes(step)) == [0, 0]
    assert [json.loads((tmp_path / rank).read_text()) for rank in "01"] == [[256.0, True]] * 2


@forks
def test_ranks_that_see_different_files_are_refused(tmp_path):
    def differ(rank: int) -> None:
        ranks = join("cpu")
        ranks.check_same("settings", {"lr": 0.1})
        try:
            ranks.check_same("settings", {"lr": rank})
        except RunError as error:
            (tmp_path / str(rank)).write_text(str(error))

    assert finish(processes(differ)) == [0, 0]
    assert all("different settings" in (tmp_path / rank).read_text() for rank in "01")


def test_processes_that_find_no_other_are_told_what_to_do(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RunError, match=r"one of 2 processes.*RANK expected.*start them with torchrun, or unset"):
        join("cpu")


def test_what_one_process_alone_did_wrong_is_told_too(monkeypatch):
    monkeypatch.setattr("periscope.console.GRACE_SECONDS", 0)

    def wrong():
        raise RunError("no such file here")

    for rank, says in (("0", "error: no such"), ("3", "error in process 11: no such")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("RANK", "11")
        with pytest.raises(SystemExit, match=says):
            run(wrong)


def test_noise_depends_on_the_step_and_the_medium_alone(language_model_folder):
    model = adapted(language_model_folder("llama"))
    batch = some_batch(model)

    def tokens(texts, draw):
        return model.slots(texts, batch.features, 0.3, draw)

    with torch.no_grad():
        all_of_it, part = tokens(batch.texts, "0/1"), tokens(batch.texts[3:5], "0/1")
        assert all(torch.allclose(part[name], all_of_it[name], atol=1e-6) for name in part)
        other, plain = tokens(batch.texts, "0/2"), model.slots(batch.texts, batch.features)
        assert not torch.allclose(other["m1"], all_of_it["m1"]) and not torch.allclose(plain["m1"], other["m1"])
        drawn = torch.cat([(all_of_it[key] - plain[key]) / plain[key].square().mean(-1, keepdim=True).sqrt()
                           for key in batch.keys])  # fmt: skip
    assert drawn.std().item() == pytest.approx(0.3, rel=0.1) and abs(drawn.mean().item()) < 0.03


def test_a_step_is_cut_evenly():
    assert split_evenly([5, 5, 5, 5], 2) == [slice(0, 2), slice(2, 4)]
    lengths = [9, 1, 1, 1, 8, 2, 6]
    parts = split_evenly(lengths, 3)
    assert [i for part in parts for i in range(len(lengths))[part]] == list(range(7))
    assert max(sum(lengths[part]) for part in parts) == 10 and len(parts) == 3
    assert [len([3, 4][part]) for part in split_evenly([3, 4], 4)] == [1, 1, 0, 0]
    assert split_evenly([], 2) == [slice(0, 0)] * 2


def test_alone_nothing_is_sent():
    alone = Ranks()
    assert alone.first and alone.sum(1, True) == [1, True] and alone.all_min(3) == alone.all_max(3) == 3
    alone.check_same("settings", {})
    alone.leave()


@pytest.mark.slow
def test_torchrun_itself(home, whole):
    """The real thing: a rank is killed with SIGKILL, torchrun ends, and a resume finishes the run."""
    call = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    job = subprocess.Popen([*call, str(ROOT / "train.py"), *TRAIN, "--steps", "3000", "--name", "real"], cwd=home,
                           env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    run, deadline = home / "runs" / "real", time.monotonic() + 120
    while not (run / "last").exists():
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(job.pid)], capture_output=True, text=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    output, _ = job.communicate(timeout=120)
    assert job.returncode != 0 and output.count("error: another process of this training is gone") == 1
    step = int((run / "last").read_text())
    assert {path.name for path in (run / "steps" / f"{step:06d}").iterdir()} == {"adapter", "state"}
    job = subprocess.Popen([*call, str(ROOT / "train.py"), "--resume", "runs/real", "--device", "cpu"], cwd=home,
                           env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    while not (run / "last").exists() or int((run / "last").read_text()) <= step + 8:
        assert job.poll() is None and time.monotonic() < deadline + 120
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    output, _ = job.communicate(timeout=120)
    assert re.search(r"stopped after step (\d+); go on with", output) and output.count("stopping after this step") == 1


def test_the_picture_shows_where_two_processes_part():
    from studies.ranks import difference, picture

    one = [2.0 - i / 10 for i in range(10)]
    two = one[:5] + [loss + 0.01 for loss in one[5:]]
    assert difference(one, two) == pytest.approx([0.0] * 5 + [0.01] * 5)
    above, below = picture(one, two, one).axes
    curves = {line.get_label(): line.get_ydata() for line in above.get_lines()}
    assert list(curves["one process"]) == one and list(curves["two processes"]) == two
    gaps = {line.get_label(): line.get_ydata() for line in below.get_lines()}
    assert gaps["two processes"] == pytest.approx([1e-8] * 5 + [0.01] * 5)
    assert set(gaps["one process, steps cut in two"]) == {1e-8} and below.get_yscale() == "log"
    assert all("nats per token" in panel.get_ylabel() and panel.get_legend() for panel in (above, below))
