"""The pictures of docs/: charts with labels and legends, drawn from the numbers there, and what a terminal shows."""

import json
import shutil

import pytest

from studies import first_run, screenshots
from studies.screenshots import DOCS


@pytest.mark.parametrize("name", [name for name in screenshots.CHARTS if (DOCS / f"{name}.json").is_file()])
def test_a_chart_has_labels_and_a_legend(name: str) -> None:
    figure = screenshots.chart(name, json.loads((DOCS / f"{name}.json").read_text()))
    assert any(axes.get_legend() for axes in figure.axes) or figure.legends
    assert all(axes.get_xlabel() for axes in figure.axes[-1:]) and any(
        axes.get_ylabel() or axes.get_yticklabels() for axes in figure.axes
    )


def test_charts_whose_numbers_are_gone_stay(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(screenshots, "DOCS", tmp_path)
    shutil.copyfile(DOCS / "retrieval.json", tmp_path / "retrieval.json")
    screenshots.draw_charts()
    assert (tmp_path / "retrieval.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["retrieval.json", "retrieval.png"]
    assert "comparison.png stays as it is: there is no comparison.json" in capsys.readouterr().out


def test_without_a_browser_there_is_a_sentence(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"error: none of chromium, .* is installed; name one with --browser"):
        screenshots.picture_report(screenshots.Options())


def test_what_is_written_over_a_line_is_what_a_terminal_shows() -> None:
    said = "one\r\ntrain   0%|    | 0/2\rtrain 100%|####| 2/2\x1b[K\nabc\rde\n\x1b[1mbold\x1b[0m \n"
    assert first_run.screen(said) == "one\ntrain 100%|####| 2/2\ndec\nbold\n"
    nested = "train 50%\r\n\rlook 10%\x1b[A\r\n\rlook 99%\x1b[A\r\n\r        \x1b[A\r         \rstep 1\r\n\rtrain 60%"
    assert first_run.screen(nested) == "step 1\ntrain 60%\n"
    assert first_run.recorded(["-c", "import shutil; print(shutil.get_terminal_size().columns)"], DOCS) == "80\n"
    lines = first_run.wrapped("periscope train " + "--adapter mlp16 " * 9).splitlines()
    assert len(lines) > 1 and max(map(len, lines)) <= 80 and all(line.endswith(" \\") for line in lines[:-1])
