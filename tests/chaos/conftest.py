import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def chaos_home():
    """A folder with what the scenarios' commands need (template/); in memory where that is possible."""
    from chaos.scenarios import make_template

    memory = Path("/dev/shm")
    home = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None))
    make_template(home / "template")
    gc.freeze()  # else each child process would look through all that was imported whenever it collects
    yield home
    gc.unfreeze()
    shutil.rmtree(home)
