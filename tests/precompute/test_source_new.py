"""The worked example of docs/new_source.md, as one new file, is a layout that precompute.py reads."""

import re
import sys
from pathlib import Path

import pytest
from data_folders import picture, reasons, said

from periscope.errors import PrecomputeError
from periscope.precompute import sources
from periscope.precompute.sources import LAYOUTS, collect

PROJECT = Path(__file__).parents[2]


def test_worked_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    text = (PROJECT / "docs/new_source.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(code.strip().splitlines()) <= 20
    (tmp_path / "code").mkdir()
    (tmp_path / "code/diary.py").write_text(code)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path / "code")])
    data = tmp_path / "data"
    picture(data / "2024/sea.jpg")
    lines = ["3 May\tsea.jpg\tThe sea  at noon.", "4 May\tgone.jpg\tNothing.", "5 May"]
    (data / "diary.txt").write_bytes("\r\n".join(lines).encode("utf-16"))
    try:
        found = collect(data)
    finally:
        LAYOUTS.pop("photo diary", None)
        sys.modules.pop("periscope.precompute.sources.diary", None)
    assert "is read as photo diary: diary.txt is a diary" in capsys.readouterr().out
    assert said(found) == [(("2024/sea.jpg",), ("The sea at noon.",), None)]
    assert found.words[0].meta == {"date": "3 May"}
    assert reasons(found) == [("gone.jpg", "missing file")]


def test_every_layout_is_named_in_the_help_and_the_docs() -> None:
    from periscope.precompute.config import DESCRIPTION

    words = {
        "conversations": "texts.jsonl",
        "saved dataset": "Hugging Face",
        "webdataset tars": "webdataset",
        "media folder": "metadata.jsonl",
        "vectors": ".npy",
        "LLaVA conversations": "LLaVA",
        "COCO captions": "COCO",
        "Karpathy's splits": "Karpathy",
        "video questions": "MSVD-QA",
        "ClipCap captions": "ClipCap",
        "LiMBeR captions": "LiMBeR",
    }
    with pytest.raises(PrecomputeError):
        collect(PROJECT / "pyproject.toml")  # imports them all
    help_text, docs = " ".join(DESCRIPTION.split()), (PROJECT / "docs/data.md").read_text()
    for name in LAYOUTS:
        assert words.get(name, name) in help_text, name
        assert words.get(name, name) in docs, name
