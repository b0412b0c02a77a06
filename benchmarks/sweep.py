"""What does a sweep save against separate programs?

It starts Python once, and loads, checks and holds the language model once.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from periscope.adapters.lm import tiny

ROOT = Path(__file__).resolve().parent.parent
RATES = ("1e-3", "3e-4", "1e-4", "3e-5")
MIDDLE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 12}
SHORT = ("--adapter", "linear4", "--batch", "4", "--steps", "2", "--eval-every", "2", "--limit", "8", "--device", "cpu")


def measure(rounds: int) -> dict[str, dict]:
    """{"four runs as one sweep": {"ratio": of four programs' CPU time to the sweep's, ...}}, for runs of 2 steps
    against a random Llama in fp32. The peak is that of one process; programs that run at the same time take it each.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "photos").mkdir()
        for number in range(32):
            Image.effect_noise((96, 96), 20 + number).convert("RGB").save(home / "photos" / f"{number}.png")
            (home / "photos" / f"{number}.txt").write_text("a red circle")
        model = tiny.save_language_model("llama", home / "lm", **MIDDLE)
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        _run(home, "precompute.py", "--data", "photos", "--encoder", "demo", "--device", "cpu")
        base = ("train.py", "--features", "features/photos", "--lm", "lm", *SHORT)
        apart, together = [], []
        for number in range(max(1, min(rounds, 3))):
            apart.append([_run(home, *base, "--lr", rate, "--name", f"{number}-{rate}") for rate in RATES])
            swept = ("--sweep", f"lr={','.join(RATES)}", "--name", f"sweep-{number}")
            together.append(_run(home, *base, *swept))
    best = min(sum(seconds for seconds, _ in runs) for runs in apart), min(seconds for seconds, _ in together)
    return {
        "four runs as one sweep": {
            "ratio": best[0] / best[1],
            "s apart": best[0],
            "s in a sweep": best[1],
            "s saved a run": (best[0] - best[1]) / (len(RATES) - 1),
            "model GiB": size / 2**30,
            "peak GiB of one": max(peak for runs in apart for _, peak in runs) / 2**30,
            "of the sweep": max(peak for _, peak in together) / 2**30,
        }
    }


def _run(home: Path, script: str, *arguments: str) -> tuple[float, int]:
    """Run a script on one thread; returns its CPU seconds and its peak resident memory in bytes."""
    call = [sys.executable, str(ROOT / script), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        call, cwd=home, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        said = process.stderr.read() if process.stderr else ""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed: {said[-500:]}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
