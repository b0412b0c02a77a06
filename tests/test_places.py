"""What commands name, looked at before torch is imported; whole command lines are in scripts/test_first_lines.py."""

from pathlib import Path

import pytest

from periscope.adapters.lm.files.find import find_model
from periscope.errors import AdapterError, RunError
from periscope.places import check_folder, check_media, check_run
from periscope.precompute.media import local_path


def test_a_folder_without_the_media_that_are_wanted_is_refused_unless_they_may_be_motion(tmp_path):
    (tmp_path / "imu").mkdir()
    (tmp_path / "imu" / "walk.csv").write_text("canonical_timestamp_ms,gyro_x\n")
    with pytest.raises(RunError, match="holds no image that can be read"):
        check_folder(tmp_path, ["image"])
    check_folder(tmp_path, ["imu"])
    (tmp_path / "a.png").touch()
    check_folder(tmp_path, ["image"])


def test_the_home_folder_of_nobody_is_a_name_like_any_other() -> None:
    """Path.expanduser raises for one, and a shell leaves `~name` as it is."""
    place = "~nobody-of-this-name/cat"
    with pytest.raises(AdapterError, match="neither a folder that exists nor a hub id"):
        find_model(place)
    with pytest.raises(RunError, match="is not a run: there is no such folder here"):
        check_run(place, hub=True)
    with pytest.raises(RunError, match="there is no such file"):
        check_media([Path(place)])
    assert local_path(place) == Path(place)
