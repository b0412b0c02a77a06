"""What the tests of encoding share."""

from pathlib import Path

import pytest

from periscope.precompute.tiny_encoders import open_clip_folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_clip_folder(tmp_path_factory.mktemp("encoder") / "clip")
