"""Encode media once with a frozen encoder: python precompute.py --help."""

import sys
from importlib.util import find_spec

if sys.version_info < (3, 11):  # noqa: UP036 an older Python must get this far, so the file has no newer syntax
    sys.exit("error: Periscope needs Python 3.11 or newer, and this is {}.{}".format(*sys.version_info))
if find_spec("periscope") is None:
    sys.exit("error: Periscope isn't installed in this Python; run this in the cloned folder first: pip install -e .")

from periscope.console import run
from periscope.precompute.cli import main

if __name__ == "__main__":
    run(main)
