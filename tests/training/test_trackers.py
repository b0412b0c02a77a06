"""What a run logs, shown elsewhere: TensorBoard's own reader gets it back, W&B is told the same, neither is needed."""

import importlib.util
import sys
import types

import pytest

from periscope.errors import RunError
from periscope.evaluation.training_scores import training_scores
from periscope.training import trackers
from periscope.training.config import config_from
from periscope.training.resolve import resumed, settle
from periscope.training.run import Run

SAMPLES = [{"media": "key", "prompt": "", "answer": "<b>a cat</b>", "reference": "a dog"}]
TWO_LINES = [{"media": "key", "prompt": "", "answer": "# a\n<b>cat</b>", "reference": "a dog"}]


def logged(run: Run, first: int, last: int) -> None:
    for step in range(first + 1, last + 1):
        run.log(step=step, loss=1 / step, lr=0.001)
    run.log(step=last, heldout={"real": 0.5, "shuffled": 2.0}, rms_ratio=1.0)
    run.write_samples(last, SAMPLES)
    run.close()


def test_words_of_several_lines_stay_what_they_are(tmp_path):
    pytest.importorskip("tensorboard")
    board, told = trackers.TensorBoard(tmp_path, {}, 1), []
    board.writer.add_text = lambda name, text, step: told.append(text)
    board.samples(1, TWO_LINES)
    board.close()
    assert "    answer: # a\n    <b>cat</b>\n" in told[0]


def test_tensorboard_reads_back_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run.create(tmp_path / "run", config_from({"lr": 0.001, "text": None}, "the test"))
    run.track(["tensorboard"], 0)
    logged(run, 0, 4)
    again = Run.open(tmp_path / "run")  # killed, and gone on from step 2
    again.track(["tensorboard"], 2)
    logged(again, 2, 3)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [(event.step, round(event.value, 4)) for event in found.Scalars("loss")] == [
        (1, 1.0), (2, 0.5), (3, 0.3333)
    ]  # fmt: skip
    assert found.Scalars("heldout/shuffled")[-1].value == 2.0
    said = found.Tensors("samples/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "    answer: <b>a cat</b>\n" in said, "four spaces: shown as it is"
    assert "lr = 0.001" in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


class StandIn(types.ModuleType):
    """W&B's package as far as it is used: what it is told is kept."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.util.spec_from_loader("wandb", None)
        self.begun, self.lines, self.metrics, self.finished = [], [], [], 0

    def init(self, **how) -> "StandIn":
        self.begun.append(how)
        return self

    def define_metric(self, *names: str, step_metric: str) -> None:
        self.metrics.append((names, step_metric))

    def log(self, values: dict) -> None:
        self.lines.append(values)

    def finish(self) -> None:
        self.finished += 1

    def Table(self, columns: list, data: list) -> tuple:
        return columns, data


def test_wandb_is_told_the_same_and_knows_a_resumed_run_again(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", told := StandIn())
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    run = Run.create(tmp_path / "run", config_from({"lr": 0.001}, "the test"))
    run.track(["wandb"], 0)
    logged(run, 0, 1)
    again = Run.open(tmp_path / "run")
    again.track(["wandb"], 1)
    other = Run.create(tmp_path / "other", config_from({"lr": 0.001}, "the test"))
    other.track(["wandb"], 0)
    one, two, three = told.begun
    assert one["id"] == two["id"] != three["id"] and one["resume"] == "allow"
    assert one["project"] == "periscope" and one["name"] == "run" and one["config"] == run.config_table()
    assert told.metrics[0] == (("*",), "step")
    assert told.lines == [
        {"step": 1, "loss": 1.0, "lr": 0.001},
        {"step": 1, "heldout/real": 0.5, "heldout/shuffled": 2.0, "rms_ratio": 1.0},
        {"step": 1, "samples": (["media", "prompt", "answer", "reference"], [["key", "", "<b>a cat</b>", "a dog"]])},
    ]
    assert told.finished == 1 and run.trackers == []


def test_a_tracker_that_fails_ends_itself_and_not_the_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", told := StandIn())
    run = Run.create(tmp_path / "run", config_from({"lr": 0.001}, "the test"))
    run.track(["wandb"], 0)

    def broken(values: dict) -> None:
        raise OSError("the network is gone\nand more")

    monkeypatch.setattr(told, "log", broken)
    logged(run, 0, 3)
    said = capsys.readouterr().err
    assert said == "--track wandb shows nothing from here on, the training goes on: the network is gone\n"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4
    monkeypatch.setattr(told, "init", lambda **how: broken({}))
    with pytest.raises(RunError, match=r"--track wandb can't begin \(the network is gone\): .* WANDB_MODE=offline"):
        Run.open(tmp_path / "run").track(["wandb"], 3)


@pytest.mark.slow
def test_wandb_itself_takes_it_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = Run.create(tmp_path / "run", config_from({"lr": 0.001}, "the test"))
    run.track(["wandb"], 0)
    logged(run, 0, 3)
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stat().st_size > 500


def test_a_tracker_is_never_required(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "run", config_from({"steps": 5, "adapter": "mlp3", "track": ["wandb"]}, "the test"))
    assert run.trackers == [] and settle({}, {}).logging.track == ()
    assert resumed(run, {"track": []}).logging.track == (), "a resumed run need not go on tracking"
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"--track wandb needs wandb: pip install 'periscope-adapters\[wandb\]'"):
        settle({"track": ["wandb"]}, {})


def test_quick_scores_by_hand():
    rows = [
        {"id": "a", "media": "m", "prompt": "", "answer": "a red cat", "reference": "a black cat", "meta": {}},
        {"id": "b", "media": "m", "prompt": "What colour?", "answer": "Black.", "reference": "black", "meta": {}},
        {"id": "c", "media": "m", "prompt": "How many?", "answer": "two", "reference": "one", "meta": {}},
    ]
    assert training_scores(rows) == {"caption_f1": 0.6667, "qa_accuracy": 0.5}
    assert training_scores(rows[:1]) == {"caption_f1": 0.6667} and training_scores([]) == {}
