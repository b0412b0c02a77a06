"""The study's assets in tests that need real weights."""

from pathlib import Path

import pytest

from studies.real import assets


def asset(name: str) -> Path:
    """An asset's folder; skips the test where its registry can't be reached."""
    try:
        return assets.folder(name)
    except assets.AssetError as error:
        pytest.skip(str(error))
