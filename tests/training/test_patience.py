"""Few captions: the warning before training, and training that ends when the held-out loss no longer falls."""

import json

import pytest
from script_runs import here
from toy_runs import run_at, save_step

from periscope.errors import RunError
from periscope.recipes import load_recipe, recipe_names
from periscope.training import session as training_session
from periscope.training.config import config_from
from periscope.training.resolve import settle_schedule
from periscope.training.run import Run, best_evaluation

TRAIN = ("--features", "features/photos", "--lm", "lm", "--adapter", "mlp3", "--batch", "16", "--eval-every", "2")


@pytest.fixture
def train(home, monkeypatch, capsys):
    """train.py, with these held-out losses, one for each evaluation."""

    def run(*arguments, losses=()):
        waiting, one = list(losses), training_session.evaluate_heldout

        def evaluated(*given):
            found, ratio, results = one(*given)
            return {**found, "real": waiting.pop(0)}, ratio, results

        with monkeypatch.context() as patch:
            patch.setattr(training_session, "evaluate_heldout", evaluated)
            said = here(home, monkeypatch, capsys, "train.py", *arguments)
        assert not waiting
        return said

    return run


def test_training_ends_when_the_heldout_loss_no_longer_falls(home, train):
    said = train(*TRAIN, "--name", "ends", losses=[5, 4, 4.5, 3, 3, 3.1, 3.2])
    run = home / "runs" / "ends"
    assert "step 14: no lower held-out loss in 3 evaluations (--patience), so training ends here; the best" in said
    assert "of step 8" in said and "done: runs/ends" in said
    assert (run / "last").read_text() == "000014\n" and (run / "best").read_text() == "000008\n"
    assert Run(run).finished() and Run(run).config.logging.patience == 3
    with pytest.raises(RunError, match="is finished"):
        train("--resume", "runs/ends")


def test_patience_survives_a_stop(home, train, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "write_samples", lambda self, step, rows: exec("raise SystemExit") if step == 8 else None)
        train(*TRAIN, "--name", "halts", "--patience", "4", losses=[3, 4, 5, 6])
    run = Run(home / "runs" / "halts")
    assert not run.finished() and int(run.step_folder().name) == 8
    said = train("--resume", "runs/halts", losses=[6, 7])
    assert "step 10: no lower held-out loss in 4 evaluations" in said and run.finished()
    assert (run.path / "best").read_text() == "000002\n"


def test_a_training_of_fixed_length_is_not_cut_short(home, train):
    said = train(*TRAIN, "--name", "fixed", "--steps", "10", losses=[3, 4, 5, 6, 7])
    assert "--patience" not in said and "done" in said
    said = train(*TRAIN, "--name", "asked", "--steps", "10", "--patience", "2", losses=[3, 4, 5])
    assert "step 6: no lower held-out loss in 2 evaluations" in said


def test_patience_is_3_where_nothing_fixes_the_length():
    for options, patience in (
        ({}, 3),
        ({"steps": 10}, 0),
        ({"epochs": 2.0}, 0),
        ({"patience": 0}, 0),
        ({"steps": 10, "patience": 5}, 5),
    ):
        config = config_from(options, "the test")
        settle_schedule(config, 10)
        assert config.logging.patience == patience
    with pytest.raises(RunError, match="--patience is -1"):
        config_from({"patience": -1}, "the test")


def test_few_texts_are_seen_50_times_at_most():
    for per_epoch, steps, every in ((2, 100, 13), (9, 450, 57), (10, 500, 63), (400, 800, 100)):
        config = config_from({}, "the test")
        schedule = settle_schedule(config, per_epoch)
        assert (schedule.steps, schedule.eval_every) == (steps, every)


def test_a_recipe_of_a_paper_trains_as_long_as_the_paper(home, train):
    paper = next(name for name in recipe_names() if load_recipe(name).about.get("paper"))
    assert paper
    (home / "paper.toml").write_text('[about]\npaper = "Some, 2020"\n[train]\nadapter = "mlp3"\nbatch = 16\n')
    train("--recipe", "paper.toml", *TRAIN[:4], "--name", "paper", "--tiny", losses=[1, 2])
    assert Run(home / "runs" / "paper").config.logging.patience == 0


def test_the_best_evaluation_leaves_out_the_fewest_texts():
    def row(step, real, not_finite=0):
        return {"step": step, "heldout": {"real": real}, **({"not_finite": not_finite} if not_finite else {})}

    rows = [row(1, 2.0, 3), row(2, float("nan")), row(3, 3.0, 1), row(4, 3.0, 1), row(5, 1.0, 2)]
    assert best_evaluation(rows) == (rows[2], 2)
    assert best_evaluation([rows[1]]) == (None, 1) and best_evaluation([]) == (None, 0)


def test_a_run_without_patience_is_finished_by_its_steps_alone(tmp_path):
    run = run_at(tmp_path / "r")
    save_step(run, 50)
    lines = [{"step": step, "heldout": {"real": float(step)}} for step in range(10, 51, 10)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert not run.finished()
    save_step(run, 100)
    assert run.finished()


def test_few_captions_are_warned_of(home, train, monkeypatch):
    words = "64 captions are too few to learn to see; thousands are usual; start from a shared adapter with --init"
    said = train(*TRAIN, "--steps", "1", "--name", "few", losses=[1])
    assert words in said and said.index(words) < said.index("run: runs/few")
    assert "too few" not in train(*TRAIN, "--steps", "1", "--name", "few2", "--init", "runs/few", losses=[1])
    monkeypatch.setattr(training_session, "FEW_TEXTS", 64)
    assert "too few" not in train(*TRAIN, "--steps", "1", "--name", "enough", losses=[1])


def test_a_new_adapter_takes_a_warm_start_unless_it_is_told_otherwise(home, train):
    said = train(*TRAIN, "--steps", "2", "--name", "warm", losses=[5])
    assert "warm start: 60 steps" in said and Run(home / "runs" / "warm").config.projector.warm_start == 60
    for name, flags in {"cold": ("--warm-start", "0"), "words": ("--start-words", "a photo")}.items():
        said = train(*TRAIN, "--steps", "2", "--name", name, *flags, losses=[5])
        assert "warm start" not in said and not Run(home / "runs" / name).config.projector.warm_start
    said = train("--init", "runs/warm", "--steps", "2", "--name", "further", losses=[5])
    assert "warm start" not in said
