"""samples.png: held-out media with what was asked, answered and right."""

from pathlib import Path

from PIL import Image

from periscope.evaluation.report.sample_sheet import contact_sheet
from periscope.evaluation.scoring.prediction import Prediction


def test_the_sheet_draws_pictures_and_survives_their_absence(tmp_path: Path):
    Image.new("RGB", (64, 32), "red").save(tmp_path / "a.jpg")
    rows = [Prediction(str(i), "m", "?" * i, "blue", "red", "green") for i in range(5)]
    sheet = contact_sheet(rows, [tmp_path / "a.jpg", None, None, None, None])
    assert sheet.width == 940 and sheet.height >= 3 * 156
    red, green, blue = sheet.getpixel((30, 30))
    assert red > 200 and green < 60 and blue < 60
    assert contact_sheet([], []).size == (940, 1)
