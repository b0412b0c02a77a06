"""Ranges of the values in adapter.json, as types that msgspec checks.

An adapter folder can come from a stranger: no number in it may cause an unbounded allocation or loop, and no name may
be longer than a file system takes.
"""

from typing import Annotated

from msgspec import Meta

MAX_FILE_BYTES = 4 << 20  # of an adapter.json; real ones have about 10 KB
MAX_SIZE = 2**31  # of a tensor dimension
MAX_LOOPS = 4096  # of anything built one by one: layers, rows, list items

Size = Annotated[int, Meta(ge=1, le=MAX_SIZE)]
SizeOrZero = Annotated[int, Meta(ge=0, le=MAX_SIZE)]
Count = Annotated[int, Meta(ge=0, le=MAX_LOOPS)]
Layer = Annotated[int, Meta(ge=-MAX_LOOPS, le=MAX_LOOPS)]  # negative: counted from the last one

Finite = Annotated[float, Meta(ge=-1.7976931348623157e308, le=1.7976931348623157e308)]
FiniteNumber = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | Finite  # an int stays one
Positive = Annotated[float, Meta(gt=0, lt=MAX_SIZE)]

# A name or path of at most 4096 characters, each of its parts at most 255.
Name = Annotated[str, Meta(max_length=4096, pattern=r"\A[^/]{0,255}(?:/[^/]{0,255})*\Z")]
Identifier = Annotated[str, Meta(max_length=255, pattern=r"\A[^\W\d]\w*\Z")]
Words = Annotated[str, Meta(max_length=100_000)]
WordsWithSlot = Annotated[str, Meta(max_length=100_000, pattern=r"(?s)\A(?:(?!\{\}).)*\{\}(?:(?!\{\}).)*\Z")]  # one {}
