"""A run that was killed after a checkpoint ends in the bits of one left alone, whatever the projector and the soft
prompt: what is read from a file must compute exactly what was saved.
"""

import shutil

import pytest
import tiny
import torch
import toy_sets
from safetensors.torch import load_file
from script_runs import here

from periscope.adapters.projectors import known_specs
from periscope.training.run import Run

LAYERS = {"shape": [2, 24], "dtype": "float16"}
FIRST = (
    ("mlp2", "--soft-prompt", "3", "--soft-prompt-mlp"),
    ("ldp",),
)
SPECS = {"linearK": "linear2", "mlpK": "mlp3", "clipcapK": "clipcap2", "clipcap-transformerK": "clipcap-transformer2",
         "groupK": "group9", "windowK": "window3", "shuffleK": "shuffle2", "perceiverK": "perceiver3",
         "maplK": "mapl3", "mapl-postK": "mapl-post3"}  # fmt: skip
PROMPTED = ("--soft-prompt", "3")
OTHERS = (
    *((SPECS.get(spec, spec),) for spec in known_specs() if spec not in ("ldp", "none")),
    ("none", *PROMPTED, "--soft-prompt-mlp"),
    ("mlp2", *PROMPTED, "--no-output-norm"),
    ("mlp2", *PROMPTED, "--soft-prompt-unit"),
    ("mlp2", *PROMPTED, "--soft-prompt-mlp", "--no-output-norm"),
    ("mlp2", *PROMPTED, "--soft-prompt-place", "around"),
    ("epalm", *PROMPTED, "--soft-prompt-mlp"),
)


@pytest.fixture(scope="module")
def toy_home(tmp_path_factory):
    """Feature sets of 40 media, and a tiny language model of a width at which kernels differ."""
    folder = tmp_path_factory.mktemp("forms")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(toy_sets.FEATURES, "layers", LAYERS)
        toy_sets.make(folder / "features/image", range(40))
    tiny.save_language_model("llama", folder / "lm", hidden_size=64)
    return folder


@pytest.mark.parametrize(
    "form", [*FIRST, *(pytest.param(form, marks=pytest.mark.slow) for form in OTHERS)], ids=" ".join
)
def test_a_run_killed_after_a_checkpoint_ends_in_the_same_bits(form, toy_home, monkeypatch, capsys):
    name = "".join(form)
    here(toy_home, monkeypatch, capsys, "train.py", "--features", "features/image", "--lm", "lm", "--adapter", *form,
         "--batch", "8", "--steps", "6", "--save-every", "3", "--eval-every", "6", "--warm-start", "0",
         "--name", name)  # fmt: skip
    whole, cut = toy_home / "runs" / name, toy_home / "runs" / f"{name}-cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "steps/000006")
    (cut / "last").write_text("000003\n")
    (cut / "best").unlink()
    assert "going on after step 3" in here(toy_home, monkeypatch, capsys, "train.py", "--resume", f"runs/{name}-cut")
    for file in ("adapter/adapter.safetensors", "state/tensors.safetensors"):
        one, two = (load_file(run / "steps/000006" / file) for run in (whole, cut))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), file
    losses = [
        [(row["step"], row.get("loss"), row.get("heldout")) for row in Run(run).metrics()] for run in (whole, cut)
    ]
    assert losses[0] == losses[1]
