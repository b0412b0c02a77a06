"""Run folders made without training, for tests."""

import torch

from periscope.training.config import config_from
from periscope.training.run import Run


def run_at(path):
    return Run.create(path, config_from({"steps": 100, "delimiters": ["Scene:", "\n"], "lm": 'a"b\\c'}, "the test"))


def save_step(run, step, best=False, keep=2):
    def write(folder):
        folder.mkdir()
        (folder / "adapter.json").write_text("{}")

    folder = run.save(step, write, {"tensors": {"x": torch.tensor([step])}, "facts": {"best": 1.5}}, keep)
    if best:
        run.point_best(step)
    return folder
