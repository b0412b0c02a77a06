"""flags.py: one typed dataclass as a command line, with ranges, and as a table."""

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
import tyro

from periscope.errors import RunError
from periscope.flags import Metavar, check_ranges, flat_fields, from_flat, given_flags, parse, run_tool, to_flat


@dataclass
class Optim:
    """Optimizer and schedule."""

    lr: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    """Peak learning rate."""
    grad_clip: Annotated[float, msgspec.Meta(ge=0, lt=100)] = 0.0
    """Largest gradient norm; 0: off."""
    steps: Annotated[int | None, msgspec.Meta(ge=1)] = None
    layers: tuple[Annotated[int, msgspec.Meta(ge=0)], int] | None = None
    eos: bool = True
    """Learn to end
    the answer."""


@dataclass
class Config:
    """The config."""

    data: Annotated[Path | None, Metavar("FOLDER")] = None
    """Folder of images."""
    kinds: Annotated[tuple[Literal["pooled", "patches"], ...], msgspec.Meta(min_length=1)] = ("pooled",)
    name: str = ""
    list_: bool = False
    """Print the recipes and exit."""
    optim: Optim = field(default_factory=Optim)


def read(*args: str, **more: object) -> Config:
    return parse(Config, args, prog="train.py", description="Train.", **more)


def test_flags_set_the_fields_of_groups_without_a_prefix():
    config = read(
        "--data", "a", "--kinds", "pooled", "patches", "--grad_clip=2", "--no-eos", "--list", "--layers", "1", "2"
    )
    assert config == Config(Path("a"), ("pooled", "patches"), "", True, Optim(1e-3, 2.0, None, (1, 2), False))
    assert read() == Config()
    start = Config(name="x", optim=Optim(lr=0.5, eos=False))
    assert read("--name", "y", default=start) == Config(name="y", optim=Optim(lr=0.5, eos=False))
    assert read("--eos", default=start).optim.eos and read("--eos", "True", default=start).optim.eos
    assert not read("--eos", "False").optim.eos and not read("--eos=False").optim.eos


def test_old_spellings_stay_hidden_and_work(capsys):
    renamed = {"--clip": "--grad-clip", "--end": "--eos"}
    config = read("--clip", "3", "--no-end", renamed=renamed)
    assert config.optim.grad_clip == 3 and not config.optim.eos
    assert read("--clip=4", renamed=renamed).optim.grad_clip == 4
    with pytest.raises(SystemExit):
        read("--help", renamed=renamed)
    assert "--clip" not in capsys.readouterr().out.replace("--grad-clip", "")


def test_help_is_grouped_and_prints_examples_as_they_are(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as end:
        read("--help", examples=["train.py --lr 1e-4        slower", "train.py --list"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "\n\nTrain.\n\nexamples:\n  train.py --lr 1e-4        slower\n  train.py --list\n\n" in shown
    assert shown.index("--data FOLDER") < shown.index("optim options") < shown.index("--grad-clip FLOAT")
    assert "Optimizer and schedule." in shown and "Learn to end the answer." in shown
    assert "(default: None)" not in shown and "(default: False)" not in shown and "(default: '')" not in shown
    assert "(default: 0.001)" in shown and "(default: 0)" in shown and "--list," in shown


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--steps", "ten"), "error: --steps ten: that is no whole number\n"),
        (("--steps=1e3",), "error: --steps 1e3: that is no whole number\n"),
        (("--lr", "1e-4x"), "error: --lr 1e-4x: that is no number\n"),
        (("--layers", "1", "x"), "error: --layers x: that is no whole number\n"),
        (("--layers", "1", "--list"), "error: --layers needs 2 values\n"),
        (("--list", "--lr"), "error: --lr needs a value\n"),
        (("--kinds", "--list"), "error: --kinds needs a value\n"),
        (("--kinds", "pooled", "pixels"), "error: --kinds pixels: choose pooled, patches\n"),
        (("--eos=maybe",), "error: --eos maybe: choose True, False\n"),
        (("--grad-clp", "1"), "error: there is no --grad-clp here; did you mean --grad-clip?\n"),
        (("--no-lr",), "error: there is no --no-lr here; --help lists what there is\n"),
        (("-x",), "error: Unrecognized options: -x\n"),
    ],
)
def test_what_is_wrong_with_a_flag_is_one_sentence(args, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        read(*args)
    assert end.value.code == 2 and capsys.readouterr().err == sentence
    assert read("--steps", "None", "--lr=1e-4").optim == Optim(lr=1e-4)


def test_a_tool_gets_its_words_and_says_what_is_missing_in_a_sentence(capsys, monkeypatch):
    def check(folder: Path, to: Annotated[str, tyro.conf.arg(metavar="OWNER/NAME")], /, license: str = "") -> None:
        print(f"on stderr: {folder} {to} {license}", file=sys.stderr)

    for words, said in (
        (["check", "a"], "error: OWNER/NAME is missing; --help says what it is\n"),
        (["check", "a", "b", "--licence"], "error: Unrecognized options: --licence; did you mean --license?\n"),
        (["check", "a", "b", "--license", "mit"], "on stderr: a b mit\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["tools", *words])
        with suppress(SystemExit):
            run_tool({"check": check, "other": check}, "Tools.", "tools")
        assert capsys.readouterr().err == said


def test_given_flags_are_those_on_the_command_line():
    args = ["--no-eos", "--grad_clip=0", "--data", "--name", "lr", "--list"]
    assert given_flags(Config, args) == {"eos", "grad_clip", "data", "name", "list_"}
    assert given_flags(Config, ["--clip", "1"], {"--clip": "--grad-clip"}) == {"grad_clip"}
    assert given_flags(Config, []) == set()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Config(optim=Optim(lr=0.0)), "--lr is 0.0; it must be greater than 0"),
        (Config(optim=Optim(lr=float("nan"))), "--lr is nan; it must be greater than 0"),
        (Config(optim=Optim(grad_clip=-1.0)), "--grad-clip is -1.0; it must be at least 0"),
        (Config(optim=Optim(grad_clip=100.0)), "--grad-clip is 100.0; it must be less than 100"),
        (Config(optim=Optim(steps=0)), "--steps is 0; it must be at least 1"),
        (Config(optim=Optim(layers=(-1, 2))), "--layers is -1; it must be at least 0"),
        (Config(kinds=()), "--kinds has 0 values; it needs at least 1"),
    ],
)
def test_ranges_are_checked_by_the_fields_metadata(config, sentence):
    with pytest.raises(RunError) as error:
        check_ranges(config, RunError)
    assert str(error.value) == sentence


def test_values_in_range_pass():
    check_ranges(Config(optim=Optim(steps=1, layers=(0, -5))), RunError)


def test_a_config_survives_as_a_table():
    config = Config(Path("a"), ("patches",), "x", True, Optim(0.5, 1.0, 7, (1, 2), False))
    table = to_flat(config)
    assert table["data"] == "a" and table["kinds"] == ["patches"] and table["layers"] == [1, 2] and table["lr"] == 0.5
    assert from_flat(Config, table, "config.toml", RunError) == config
    assert from_flat(Config, {"lr": 1}, "config.toml", RunError) == Config(optim=Optim(lr=1.0))


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"grad_clp": 1.0}, "config.toml sets grad_clp, which is no option; did you mean grad_clip?"),
        ({"steps": "many"}, "config.toml sets steps to 'many': Expected int | null, got str"),
        ({"steps": 0}, "config.toml: --steps is 0; it must be at least 1"),
        ({"data": 3}, "config.toml sets data to 3: Expected"),
        ({"kinds": ["pixels"]}, "config.toml sets kinds to ['pixels']: Invalid enum value 'pixels'"),
        ({"eos": "yes"}, "config.toml sets eos to 'yes': Expected bool, got str"),
    ],
)
def test_a_table_with_wrong_names_or_values_is_refused(table, sentence):
    with pytest.raises(RunError) as error:
        from_flat(Config, table, "config.toml", RunError)
    assert str(error.value).startswith(sentence)


def test_two_groups_with_one_name_are_a_bug():
    @dataclass
    class Other:
        lr: float = 0.0

    @dataclass
    class Both:
        optim: Optim = field(default_factory=Optim)
        other: Other = field(default_factory=Other)

    Both.__annotations__ |= {"optim": Optim, "other": Other}
    with pytest.raises(TypeError, match="'lr'"):
        flat_fields(Both)
    assert list(flat_fields(Config)) == ["data", "kinds", "name", "list_", "lr", "grad_clip", "steps", "layers", "eos"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["photos"], "photos stands alone; did you mean --data photos?"),
        (["--name", "a", "b"], "b stands alone; did you mean --data b?"),
        (["--name", "mlp", "16"], "16 stands alone; without the space it is --name mlp16"),
        (["--name=mlp", "16"], "16 stands alone; without the space it is --name mlp16"),
        (["--list", "x"], "x stands alone; did you mean --data x?"),
        (["--learning-rate", "1"], "there is no --learning-rate here; it is called --lr"),
        (["--learning_rate=1"], "there is no --learning-rate here; it is called --lr"),
        (["--input", "x"], "there is no --input here; it is called --data"),
    ],
)
def test_a_word_alone_and_another_programs_name_get_a_sentence(args, said, capsys):
    with pytest.raises(SystemExit) as end:
        parse(Config, args, prog="p", description="d", path="--data")
    assert end.value.code == 2 and capsys.readouterr().err == f"error: {said}\n"


def test_what_is_right_is_left_to_the_parser():
    config = parse(
        Config, ["--kinds", "pooled", "patches", "--eos", "--layers", "1", "-2", "--name=x", "--list"], prog="p",
        description="d", path="--data",
    )  # fmt: skip
    assert config.kinds == ("pooled", "patches") and config.optim.layers == (1, -2) and config.name == "x"
