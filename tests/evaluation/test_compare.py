"""Runs side by side: what the table says of made-up runs, and where the picture has their dots."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from periscope.errors import RunError, ScoreError
from periscope.evaluation.report import compare, compare_picture, compare_settings, compare_table


def make_run(folder: Path, adapter: str, lr: float, value: float | None, ids: str = "abc") -> None:
    weights = folder / "steps" / "000002" / "adapter"
    weights.mkdir(parents=True)
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}, weights / "adapter.safetensors")
    (folder / "last").write_text("000002\n")
    (folder / "config.toml").write_text(
        f'adapter = "{adapter}"\nlr = {lr}\nbatch = 8\nsave_every = {len(adapter)}\ndelimiters = ["a|b", ""]\n'
    )
    steps = [{"step": step, "loss": 1.0, "targets": 100, "seconds": 2.5} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    if value is not None:
        found = {"real": {"caption_f1": value, "qa_accuracy": value / 2}, "shuffled": {"caption_f1": 0.25},
                 "intervals": {"real": {"caption_f1": [value - 0.1, value + 0.1]}}, "n": len(ids)}  # fmt: skip
        (folder / "eval.json").write_text(json.dumps({"splits": {"heldout": found}}))
        (folder / "predictions.jsonl").write_text("".join(json.dumps({"id": one}) + "\n" for one in ids))


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path / "low", "mlp8", 0.001, 0.5)
    make_run(tmp_path / "high", "mlp16", 0.001, 0.75)
    make_run(tmp_path / "unscored", "mlp16", 0.01, None)
    (tmp_path / "compare.md").write_text("an older table")
    return tmp_path


def test_the_table_says_what_differed_and_what_it_did(runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["eval.py"])
    found = compare.open_runs(sorted(runs.iterdir()))
    assert [run.name for run in found] == ["high", "low", "unscored"]
    assert [run.name for run in compare.open_runs([runs])] == ["high", "low", "unscored"], "a folder of runs, a sweep's"
    assert compare_settings.differing(found) == {
        "adapter": ["mlp16", "mlp8", "mlp16"],
        "lr": ["0.001", "0.001", "0.01"],
    }
    text = compare_table.table(found)
    lines = text.splitlines()
    assert lines[0] == "| run | qa_accuracy | caption_f1 | adapter | lr | steps | seconds | target tokens | trained |"
    assert lines[2] == "| high | 0.375 | 0.750 [0.650, 0.850] (0.250) | mlp16 | 0.001 | 2 | 5 | 200 | 17 |"
    assert lines[4] == "| unscored | not scored | not scored | mlp16 | 0.01 | 2 | 5 | 200 | 17 |"
    assert "Not scored (python eval.py --run ...): unscored." in text and "hard to compare" not in text
    make_run(runs / "others", "mlp8", 0.001, 0.5, ids="abd")
    assert "scored on different texts" in compare_table.table(compare.open_runs(list(runs.iterdir())))
    (runs / "photos").mkdir()
    capsys.readouterr()
    compare.open_runs([*runs.iterdir()])
    assert capsys.readouterr().out == f"note: no run in {runs / 'photos'}\n"
    with pytest.raises(ScoreError, match="is a run"):
        compare.open_runs([runs / "compare.md"])


def test_nothing_that_differs_is_cut_and_whatever_compares_badly_is_said(tmp_path):
    long = "a prompt that is longer than any column of a table may be, and says at its very end: "
    for name, end, made in (("one", "cat", {"task": "vqav2", "beams": 1}), ("two", "dog", {"task": None, "beams": 1})):
        make_run(tmp_path / name, "mlp8", 0.001, 0.5)
        with open(tmp_path / name / "config.toml", "a") as file:
            file.write(f'caption_prompt = "{long}{end}"\n' + ("rate = 0.5\n" if name == "one" else ""))
        result = json.loads((tmp_path / name / "eval.json").read_text()) | made
        real = result["splits"]["heldout"]["real"]
        result["splits"]["heldout"]["real"] = (
            {"caption_cider": 1.5, "caption_bleu4": 0.2} if name == "one" else {}
        ) | real
        (tmp_path / name / "eval.json").write_text(json.dumps(result))
    found = compare.open_runs([tmp_path])
    assert compare_settings.shared(found) == ["qa_accuracy", "caption_f1"], (
        "of all that both have, not of what one has first"
    )
    text = compare_table.table(found)
    assert f"- caption_prompt: {long}cat (one); {long}dog (two)" in text
    assert "Asked in different ways, so the scores are hard to compare: task vqav2 (one); None (two)." in text
    assert "older versions didn't write them: rate." in text and "| rate" not in text and "beams" not in text
    make_run(tmp_path / "few", "mlp8", 0.001, 0.5, ids="ab")
    assert "heldout 2 (few); heldout 3 (one, two)" in compare_table.table(compare.open_runs([tmp_path]))
    alone = compare.open_runs([tmp_path / "few"])
    assert compare_table.table(alone).startswith(
        "| run | qa_accuracy | caption_f1 | steps |"
    ) and compare_picture.picture(alone)


def test_the_picture_shows_each_run_where_its_score_is(runs):
    found = compare.open_runs(sorted(runs.iterdir()))
    figure = compare_picture.figure_of(found)
    accuracy, shared, seconds = figure.axes
    own, bounds = shared.containers[0].lines[0], shared.containers[0].lines[2][0].get_segments()
    assert np.allclose(own.get_xydata(), [(0.75, 0), (0.5, 1)]), "high on top, then low; unscored has no dot"
    assert np.allclose(bounds, [[(0.65, 0), (0.85, 0)], [(0.4, 1), (0.6, 1)]])
    assert np.allclose(shared.lines[-1].get_xydata(), [(0.25, 0), (0.25, 1)]), "the controls"
    assert accuracy.get_xlim()[1] == shared.get_xlim()[1] == 1.02 and not accuracy.lines[-1].get_xdata().size
    labels = [label.get_text() for label in accuracy.get_yticklabels()]
    assert labels == [
        "high\nadapter mlp16, lr 0.001",
        "low\nadapter mlp8, lr 0.001",
        "unscored\nadapter mlp16, lr 0.01",
    ]
    assert [bar.get_width() for bar in seconds.patches] == [5, 5, 5]
    said = [axes.get_xlabel() for axes in figure.axes]
    assert said == ["qa_accuracy, 0 to 1", "caption_f1, 0 to 1", "seconds of training steps"]
    (legend,) = figure.legends
    assert "split heldout" in legend.get_title().get_text() and len(legend.get_texts()) == 2


def test_names_of_runs_are_no_formulas_and_without_a_plotting_library_there_is_a_table(runs, monkeypatch, capsys):
    (runs / "low").rename(runs / "a$b$_{")
    assert compare_picture.picture(compare.open_runs([runs])).startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    compare.write_comparison([runs], runs / "out.md")
    assert "note: no picture: charts are drawn by matplotlib, which isn't installed" in capsys.readouterr().out
    assert (runs / "out.md").is_file() and not (runs / "out.png").exists()


def test_compare_from_the_command_line_loads_no_model(runs, monkeypatch, capsys):
    from periscope import eval as eval_script

    monkeypatch.chdir(runs)
    monkeypatch.setattr(sys, "argv", ["eval.py", "--compare", "low", "high", "--out", "new/table.md"])
    monkeypatch.setattr(eval_script, "choose_device", lambda name: pytest.fail("no device is needed"))
    eval_script.main()
    for out, said in (
        ("new/table.png", "is where the table goes"),
        ("new", "is where the table"),
        ("low/last/x.md", "can't be"),
    ):
        monkeypatch.setattr(sys, "argv", ["eval.py", "--compare", "low", "--out", out])
        with pytest.raises(RunError, match=said):
            eval_script.main()
    assert capsys.readouterr().out.splitlines()[3].startswith("| high |")
    assert (runs / "new" / "table.md").read_text().startswith("| run | qa_accuracy |")
    assert (runs / "new" / "table.png").read_bytes().startswith(b"\x89PNG")


def scored(folder: Path, real: float, shuffled: float, cider: float, first_split: str = "alpha") -> None:
    """A run scored on two splits: one of its own that comes first by name, and "heldout"."""
    make_run(folder, "mlp8", 0.001, 0.5)
    drop = shuffled - real
    losses = {"real": real, "shuffled": shuffled, "drop": drop, "interval": [drop - 0.1, drop + 0.1]}
    part = {"real": {"caption_cider": cider}, "shuffled": {"caption_cider": cider}, "n": 16,
            "intervals": {"real": {"caption_cider": [0.0, 9.0]}}, "losses": losses}  # fmt: skip
    other = {"real": {"caption_f1": 1 - cider / 10}, "n": 3}
    (folder / "eval.json").write_text(json.dumps({"splits": {first_split: other, "heldout": part}}))


def test_where_scores_cant_tell_the_loss_ranks_and_the_table_names_split_and_measure(tmp_path):
    scored(tmp_path / "worst", 3.6, 3.6, cider=2.0)
    scored(tmp_path / "best", 2.4, 3.6, cider=0.5, first_split="beta")
    scored(tmp_path / "middle", 2.9, 3.6, cider=1.0)
    found = compare.open_runs([tmp_path])
    assert [run.name for run in found] == ["best", "middle", "worst"]
    text = compare_table.table(found)
    assert text.splitlines()[0].startswith("| run | held-out loss | loss drop | caption_cider | ")
    assert "| best | 2.400 | 1.200 [1.100, 1.300] | 0.500 [0.000, 9.000] (0.500) |" in text
    assert "Best first by the loss drop on heldout" in text and "no score's intervals tell the runs apart" in text
    assert "Scores of the split heldout" in text and "hard to compare: heldout" not in text
    # Older results hold no losses; what training logged then ranks.
    for name, loss in (("worst", 3.6), ("best", 2.4), ("middle", 2.9)):
        result = json.loads((tmp_path / name / "eval.json").read_text())
        del result["splits"]["heldout"]["losses"]
        (tmp_path / name / "eval.json").write_text(json.dumps(result))
        with open(tmp_path / name / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 2, "heldout": {"real": loss}}) + "\n")
    again = compare.open_runs([tmp_path])
    assert [run.name for run in again] == ["best", "middle", "worst"]
    assert "Best first by the held-out loss" in compare_table.table(again)


def test_runs_without_a_common_split_and_paths_that_arent_there_are_named(tmp_path):
    make_run(tmp_path / "one", "mlp8", 0.001, 0.5)
    make_run(tmp_path / "two", "mlp8", 0.001, 0.7)
    two = tmp_path / "two" / "eval.json"
    two.write_text(two.read_text().replace('"heldout"', '"test"'))
    text = compare_table.table(compare.open_runs([tmp_path]))
    assert "share no scored split" in text and "heldout 3 (one); test 3 (two)" in text
    with pytest.raises(ScoreError, match="nope doesn't exist"):
        compare.open_runs([tmp_path / "one", tmp_path / "nope"])


def test_a_score_ranks_where_its_intervals_tell_runs_apart(tmp_path):
    for name, loss, value in (("low", 2.0, 0.2), ("high", 3.0, 0.8)):
        scored(tmp_path / name, loss, 3.6, cider=1.0)
        file = tmp_path / name / "eval.json"
        result = json.loads(file.read_text())
        part = result["splits"]["heldout"]
        part["real"]["qa_accuracy"], part["n"] = value, 50
        part["intervals"]["real"]["qa_accuracy"] = [value - 0.1, value + 0.1]
        file.write_text(json.dumps(result))
    found = compare.open_runs([tmp_path])
    assert [run.name for run in found] == ["high", "low"]
    assert "Best first by qa_accuracy on heldout" in compare_table.table(found)
