"""The plan: what it predicts, and what it refuses."""

from pathlib import Path

import pytest
from encoded_photos import photos, run

from periscope.errors import PrecomputeError
from periscope.precompute import plan
from periscope.precompute.pipeline import job


def test_the_plan_stops_what_will_not_fit(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "free_bytes", lambda _: 50_000)
    with pytest.raises(PrecomputeError, match=r"won't fit .* has 50.0 kB free"):
        run(photos(tmp_path / "photos", 20), encoder, tmp_path / "set")
    assert not list((tmp_path / "set").glob("shard*"))


def test_the_plan_is_near_the_truth(tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    features = run(photos(tmp_path / "photos", 60), encoder, out)
    assert "plan: 60 media to encode · each pooled 48 B, patches 1.0 kB" in capsys.readouterr().out
    planned = plan.DiskPlan(60, 0, plan.bytes_each(features.manifest["features"]), out, 1 << 40, 1.0).total
    written = sum((out / name).stat().st_size for name in ("shard-000000.tar", "index.safetensors"))
    assert 0.8 * planned < written < 1.1 * planned
