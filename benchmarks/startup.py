"""How long until something happens? `train.py --help`, and a run of one step on as many texts as the demo has.

CPU time of separate programs, compared with one that only imports torch and transformers.
"""

import resource
import subprocess
import sys
import tempfile
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks import side_by_side
from benchmarks._synthetic import WORDS, caption_lengths, feature_set
from periscope.adapters.projectors import FeatureShape

PROJECT = Path(__file__).parent.parent
TEXTS = 12_000  # the demo's
FLAGS = ("--recipe", "demo", "--features", "set", "--lm", "demo/backbones/lm", "--steps", "1", "--device", "cpu")


def measure(rounds: int) -> dict[str, dict]:
    """{"train.py --help, against importing torch and transformers": {"ratio", "seconds"}, "the first step of the demo
    beyond those imports": {"ratio", "seconds", "beyond the model's class": seconds beyond importing that class, which
    transformers defers until it is named}}.
    """
    names = count()
    with tempfile.TemporaryDirectory() as folder:
        captions = [[length] for length in caption_lengths(512)]
        shape = FeatureShape("pooled", 1, 128)
        feature_set(Path(folder) / "set", shape, TEXTS, captions, WORDS[:1])
        call = partial(subprocess.run, check=True, cwd=folder, capture_output=True)
        train = [sys.executable, str(PROJECT / "train.py")]
        ways = {
            "imports": lambda: call([sys.executable, "-c", "import torch, transformers"]),
            "model": lambda: call([sys.executable, "-c", "import torch; from transformers import LlamaForCausalLM"]),
            "help": lambda: call([*train, "--help"]),
            "step": lambda: call([*train, *FLAGS, "--name", f"run{next(names)}"]),
        }
        took = side_by_side(ways, rounds, _children)
    return {
        "train.py --help, against importing torch and transformers": {
            "ratio": took["help"] / took["imports"],
            "seconds": took["help"],
        },
        "the first step of the demo beyond those imports": {
            "ratio": took["step"] / took["imports"] - 1,
            "seconds": took["step"] - took["imports"],
            "beyond the model's class": took["step"] - took["model"],
        },
    }


def _children() -> float:
    """CPU seconds of all child programs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
