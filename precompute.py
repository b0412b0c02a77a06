"""Encode media once with a frozen encoder: python precompute.py --help."""

import sys
from importlib.util import find_spec

if find_spec("periscope") is None:
    sys.exit("error: Periscope isn't installed in this Python; run this in the cloned folder first: pip install -e .")

from periscope.console import run
from periscope.precompute.cli import main

if __name__ == "__main__":
    run(main)
