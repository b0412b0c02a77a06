"""What names of adapters mean without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from periscope.adapters import projectors
from periscope.adapters.names import declared_projectors

FOLDER = Path(projectors.__file__).parent


def test_the_declared_projectors_are_those_of_the_registry() -> None:
    found = [declared_projectors(file.read_text(encoding="utf-8")) for file in FOLDER.glob("*.py")]
    declared = {name: kind for kinds in found if kinds for name, kind in kinds.items()}
    assert None not in found
    assert declared == {name: entry.kind for name, entry in projectors.PROJECTORS.items()}


@pytest.mark.parametrize(
    "call",
    ["'rows{hidden}', 'patches'", '"rows{hidden}", reads="patches"', "reads='patches', pattern='rows{hidden}'",
     '\n    "rows{hidden}",\n    reads="patches",\n'],
)  # fmt: skip
def test_a_projector_may_be_declared_in_any_way(call: str) -> None:
    body = "class Rows:\n    pass\n"
    assert declared_projectors(f"@projector({call})\n{body}") == {"rows{hidden}": "patches"}
    assert declared_projectors(f"@projectors.projector({call})\n{body}") == {"rows{hidden}": "patches"}


@pytest.mark.parametrize("call", ["NAME, reads='patches'", "f'rows{n}', 'patches'", "'rows', KIND", "*BOTH", "'rows'"])
def test_what_cant_be_read_off_is_left_to_the_registry(call: str) -> None:
    assert declared_projectors(f"@projector({call})\nclass Rows:\n    pass\n") is None
    assert declared_projectors("class (") is None


def test_the_kind_is_told_without_torch() -> None:
    code = "import sys; from periscope.adapters.names import kind_of; print(kind_of('mlp16'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["pooled", "False"]
