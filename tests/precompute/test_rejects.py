"""Every reason for which something is left out has advice of its own."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from periscope.precompute.decoding.pool import CRASH, KILLED
from periscope.precompute.encoders.base import UNPREPARED
from periscope.precompute.media.file import UNREAD
from periscope.precompute.media.limits import NO_MEMORY
from periscope.precompute.pipeline.filters import REASONS
from periscope.precompute.pipeline.rejects import ADVICE, BEGINS, advice_for, report_rejects

PACKAGE = Path(__file__).parents[2] / "precompute"
# What makes them -> which argument the reason is.
PLACES = {"MediaError": 0, "UnreadError": 0, "Problem": 1, "refuse": 1}
# Reasons that are written down elsewhere: those of filters, and those passed on.
PASSED_ON = {
    "self.small()",
    "self.plain()",
    "self.reason()",
    "DUPLICATE",
    "reason",
    "error.reason",
    "CRASH",
    "KILLED",
    "NO_MEMORY",
    "UNPREPARED",
    "UNREAD",
    "too_slow(chosen)",
    "*result.error",
}
SPELLED_OUT = {"f'no {what} in it'": ("sound", "clip"), "f'not a {what}'": ("sound", "clip")}


def calls() -> Iterator[tuple[str, ast.expr]]:
    """(where, the expression of the reason) of everything that is left out."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in PLACES:
                place = PLACES[node.func.id]
                if len(node.args) > place:
                    yield f"{path.name}:{node.lineno}", node.args[place]


@cache
def reasons() -> list[tuple[str, str]]:
    """(where, the reason) of everything that is left out."""
    return list(_reasons())


def _reasons() -> Iterator[tuple[str, str]]:
    for where, expression in calls():
        for option in (expression.body, expression.orelse) if isinstance(expression, ast.IfExp) else (expression,):
            source = ast.unparse(option)
            if isinstance(option, ast.Constant):
                yield where, str(option.value)
            elif source in SPELLED_OUT:
                yield from ((where, eval(source, {"what": what})) for what in SPELLED_OUT[source])
            elif source.startswith("f'img2dataset: "):
                yield where, "img2dataset: failed"
            else:
                assert source in PASSED_ON, f"{where}: the reason {source} isn't known to this test"


def test_every_reason_has_advice() -> None:
    assert len(reasons()) > 60
    for where, reason in reasons():
        assert reason in ADVICE or reason.startswith((*BEGINS, *REASONS)), f"{where}: {reason!r} has no advice"


def test_all_advice_is_for_a_reason_that_there_is() -> None:
    used = {reason for _, reason in reasons()} | {"beyond float16", "not finite", CRASH, KILLED}
    used |= {NO_MEMORY, UNPREPARED, UNREAD}
    assert set(ADVICE) <= used
    assert advice_for("img2dataset: failed_to_resize").startswith("what couldn't be downloaded")


def test_a_frequent_reason_is_said_with_its_advice(capsys: pytest.CaptureFixture) -> None:
    report_rejects([{"reason": "row can't be read"}] * 3, 20, 0)
    assert '3 of 20 were left out for one reason, "row can\'t be read": mend the quotes' in capsys.readouterr().out
