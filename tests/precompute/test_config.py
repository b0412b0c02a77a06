"""The options of precompute.py: flags over recipe over defaults, in range, and quick help."""

import subprocess
import sys
from pathlib import Path

import pytest

from periscope.errors import PrecomputeError
from periscope.flags import flat_fields
from periscope.paths import PACKAGE
from periscope.precompute.config import PrecomputeConfig, read_config

FLAGS = {
    *("data", "encoder", "kinds", "recipe", "for_", "tiny", "out", "store", "pool", "views", "min_side", "duplicates"),
    *("one_colour", "cls_token"),
    *("similarity", "similarity_by", "limit", "device", "precision", "batch", "workers", "frames", "windows", "resize"),
    *(
        "normalise",
        "layer",
        "ray",
        "demo",
        "demo_seed",
        "max_pixels",
        "max_bytes",
        "max_seconds",
        "max_memory",
        "language",
    ),
}


def test_every_flag_is_there():
    assert set(flat_fields(PrecomputeConfig)) == FLAGS


def test_flags_override_the_recipe_and_the_recipe_the_defaults(tmp_path: Path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        '[precompute]\nkinds = ["patches"]\nencoder = "clip-l"\nviews = 4\nsimilarity = 0.3\nlayer = -1\n'
    )
    config = read_config(["--recipe", str(recipe), "--views", "2", "--no-tiny"])
    assert (config.kinds, config.encoder, config.storage.views) == (("patches",), "clip-l", 2)
    assert (config.selection.similarity, config.compute.batch) == (0.3, 32)
    assert config.encoder_choices() == {"patch_layer": -1}
    assert read_config(["--resize", "crop", "--frames", "4"]).encoder_choices() == {"frames": 4, "resize": "crop"}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('encodr = "clip-l"', "sets encodr, which is no option; did you mean encoder?"),
        ('batch = "many"', "sets batch to 'many': Expected int, got str"),
        ('kinds = ["pixels"]', "sets kinds to"),
        ("views = 0", "views is 0; it must be at least 1"),
    ],
)
def test_a_recipe_is_read_through_the_same_types(tmp_path: Path, table: str, sentence: str):
    (tmp_path / "mine.toml").write_text(f"[precompute]\n{table}\n")
    with pytest.raises(PrecomputeError) as error:
        read_config(["--recipe", str(tmp_path / "mine.toml")])
    assert sentence in str(error.value) and "mine.toml" in str(error.value)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--batch", "0"], "--batch is 0; it must be at least 1"),
        (["--limit=-1"], "--limit is -1; it must be at least 0"),
        (["--workers=-1"], "--workers is -1; it must be at least 0"),
        (["--views", "0"], "--views is 0; it must be at least 1"),
        (["--min-side=-1"], "--min-side is -1; it must be at least 0"),
        (["--similarity", "1"], "--similarity is 1.0; it must be less than 1"),
    ],
)
def test_values_out_of_range_are_refused(flags: list[str], sentence: str):
    with pytest.raises(PrecomputeError, match=sentence):
        read_config(flags)


def test_help_starts_with_the_common_flags_and_loads_no_torch():
    code = "import sys; from periscope.precompute.cli import main; sys.argv = ['precompute.py']\n"
    code += "try: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    common, *groups = (
        done.stdout.split(" options ─")[1:] if " options ─" in done.stdout else done.stdout.split("options")
    )
    flags = ("data", "encoder", "kinds", "out", "recipe", "limit", "tiny", "device")
    assert [common.index(f"--{flag}") for flag in flags] == sorted(common.index(f"--{flag}") for flag in flags)
    assert len(groups) == 6 and "--store" not in common and "(default: None)" not in done.stdout
    assert "  python precompute.py --data photos/ --encoder clip-l-336           a folder of images" in done.stdout
