"""What commands name, looked at before torch is imported; whole command lines are in scripts/test_first_lines.py."""

import pytest

from periscope.errors import RunError
from periscope.places import check_folder


def test_a_folder_without_the_media_that_are_wanted_is_refused_unless_they_may_be_motion(tmp_path):
    (tmp_path / "imu").mkdir()
    (tmp_path / "imu" / "walk.csv").write_text("canonical_timestamp_ms,gyro_x\n")
    with pytest.raises(RunError, match="holds no image that can be read"):
        check_folder(tmp_path, ["image"])
    check_folder(tmp_path, ["imu"])
    (tmp_path / "a.png").touch()
    check_folder(tmp_path, ["image"])
