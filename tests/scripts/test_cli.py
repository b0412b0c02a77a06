"""The `periscope` command: its list, its commands as the scripts' own code, and how it spells what comes next."""

import ast
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from script_runs import ROOT, here

from periscope import __version__, cli, console, hub_repo
from periscope.adapters.lm.files import find
from periscope.errors import RunError
from periscope.evaluation import commands
from periscope.evaluation import config as evaluation_config
from periscope.evaluation.config import (
    AnswerOptions,
    DecodingOptions,
    LanguageModelOptions,
    ModelOptions,
    PushOptions,
    read_config,
)
from periscope.evaluation.report import compare as comparison

LIST = "import sys; from periscope.cli import main; sys.argv = ['periscope']; main(); print(*sys.modules)"
SCRIPTS = ("precompute.py", "train.py", "eval.py")
APART = {"tests", "studies", "benchmarks", "build", ".venv"}


def periscope(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["periscope", *map(str, arguments)])
    cli.main()


@pytest.fixture
def called(monkeypatch, tmp_path) -> list:
    """What the commands below the `periscope` command are called with: (name, arguments). What they name is there; that
    adapters, models and the Hub are looked at is asserted in test_first_lines.py.
    """
    calls: list = []
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "runs/b", "photos"):
        Path(name).mkdir(parents=True)
    for name in ("cat.jpg", "dog.jpg", "photos/a.jpg"):
        Path(name).touch()
    monkeypatch.setattr(evaluation_config, "check_adapters", lambda runs, models: ["image", "audio"])
    monkeypatch.setattr(find, "find_model", lambda name, flag: name)
    monkeypatch.setattr(hub_repo, "check_push", lambda to, error: None)
    for name in ("respond", "caption_folder", "recaption_folder", "push"):
        monkeypatch.setattr(commands, name, lambda *given, name=name: calls.append((name, given)))
    return calls


def test_the_list_of_commands_is_instant_and_imports_nothing_large():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    *listed, modules = done.stdout.strip().splitlines()
    assert not {"torch", "tyro", "numpy", "msgspec"} & set(modules.split())
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 0.3, "processor time, so that other work on the machine doesn't count"
    for name, entry in cli.COMMANDS.items():
        assert f"  {name:<12}{entry.help}" in listed


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_without_a_command_it_lists_all_by_group(arguments, monkeypatch, capsys):
    periscope(monkeypatch, *arguments)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:-1] for line in lines if line.endswith(":")] == list(cli.GROUPS)
    assert max(map(len, lines)) <= 100


def test_a_typo_names_the_nearest_command(monkeypatch, capsys):
    for typo, hint in (
        ("trian", "did you mean train?"),
        ("xyz", "the commands are init, plan, precompute, train"),
    ):
        with pytest.raises(SystemExit) as end:
            periscope(monkeypatch, typo)
        assert end.value.code == 2 and hint in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        periscope(monkeypatch, "export", "guf", "runs/first")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: periscope export has no command 'guf'; did you mean gguf?\n"


def test_the_version(monkeypatch, capsys):
    periscope(monkeypatch, "--version")
    assert capsys.readouterr().out == f"periscope {__version__}\n" and __version__[0].isdigit()


def test_every_command_is_there_and_the_scripts_share_their_code():
    for entry in [
        *cli.COMMANDS.values(),
        *(cli.Command(target, "") for target in (cli.EXPORTS | cli.IMPORTS).values()),
    ]:
        assert callable(entry.load())
    from periscope import eval as eval_script
    from periscope import train as train_script
    from periscope.precompute.cli import main as precompute_main

    for name, main in (("train", train_script.main), ("eval", eval_script.main), ("precompute", precompute_main)):
        assert cli.COMMANDS[name].load() is main


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_says_which_command_it_is_about(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        periscope(monkeypatch, name, "--help")
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert f"usage: periscope {name}" in said
    if name in ("eval", "ask", "chat", "caption", "compare", "push"):
        assert "None" not in said and "(default: )" not in said


def test_ask_and_chat_take_a_run_then_files_then_the_question(monkeypatch, called):
    periscope(monkeypatch, "ask", "runs/a", "cat.jpg", "dog.jpg", "Which?", "--max-new-tokens", 8, "--device", "cpu")
    models = ModelOptions(device="cpu")
    files = (Path("cat.jpg"), Path("dog.jpg"))
    assert called.pop() == ("respond", ({None: Path("runs/a")}, files, "Which?", DecodingOptions(8), models, "cpu"))
    periscope(monkeypatch, "chat", "image=runs/a,audio=runs/b", "cat.jpg", "--device", "cpu")
    adapters = {"image": Path("runs/a"), "audio": Path("runs/b")}
    assert called.pop() == ("respond", (adapters, files[:1], None, DecodingOptions(), models, "cpu"))
    periscope(monkeypatch, "chat", "runs/a", "--temperature", 0.7, "--top-p", 0.9, "--beams", 2, "--device", "cpu")
    answers = DecodingOptions(beams=2, temperature=0.7, top_p=0.9)
    assert called.pop() == ("respond", ({None: Path("runs/a")}, (), None, answers, models, "cpu"))
    with pytest.raises(SystemExit, match="periscope ask needs a run, a file and a question"):
        periscope(monkeypatch, "ask", "runs/a", "What?")
    with pytest.raises(SystemExit, match=r"top_p is 0.5, and without a temperature"):
        periscope(monkeypatch, "ask", "runs/a", "cat.jpg", "What?", "--top-p", 0.5)
    with pytest.raises(SystemExit, match="--max-new-tokens is -1; it must be at least 0"):
        periscope(monkeypatch, "ask", "runs/a", "cat.jpg", "What?", "--max-new-tokens", -1)


def test_caption_push_and_compare(monkeypatch, called, tmp_path):
    out = tmp_path / "new" / "a.jsonl"
    periscope(monkeypatch, "caption", "runs/a", "photos", "--out", out, "--batch", 2, "--device", "cpu")
    models, answers = ModelOptions(device="cpu"), AnswerOptions(batch=2)
    assert called.pop() == ("caption_folder", ({None: Path("runs/a")}, Path("photos"), out, answers, models, "cpu"))
    periscope(
        monkeypatch, "caption", "--with", "some/vlm", "photos", "--out", out, "--prompt", "Say.", "--device", "cpu"
    )
    assert called.pop() == (
        "recaption_folder",
        ("some/vlm", "Say.", Path("photos"), out, AnswerOptions(), models, "cpu"),
    )
    with pytest.raises(SystemExit, match="needs the folder alone"):
        periscope(monkeypatch, "caption", "--with", "some/vlm", "runs/a", "photos", "--out", out)
    for option in (("--runtime", "llama.cpp"), ("--lm", "x"), ("--encoder", "x"), ("--anyway",)):
        with pytest.raises(SystemExit, match=f"{option[0]} does nothing with --with, whose model is no run's"):
            periscope(monkeypatch, "caption", "--with", "some/vlm", "photos", "--out", out, *option)
        if option[0] != "--lm":
            with pytest.raises(RunError, match=f"{option[0]} does nothing with --push; leave it out"):
                read_config(["--run", "runs/a", "--push", "user/x", *option], "eval.py", "")
            with pytest.raises(SystemExit) as refused:  # not one of its options
                periscope(monkeypatch, "push", "runs/a", "user/x", *option)
            assert refused.value.code == 2
    with pytest.raises(SystemExit, match="--prompt is what the model of --with is asked"):
        periscope(monkeypatch, "caption", "runs/a", "photos", "--out", out, "--prompt", "Say.")
    out.write_text("")
    with pytest.raises(SystemExit, match="exists and is never overwritten"):
        periscope(monkeypatch, "caption", "runs/a", "photos", "--out", out, "--device", "cpu")
    periscope(monkeypatch, "push", "image=runs/a", "user/x", "--license", "mit", "--device", "cpu")
    options = PushOptions(license="mit")
    assert called.pop() == (
        "push", ({"image": Path("runs/a")}, "user/x", options, LanguageModelOptions(device="cpu"), "cpu")
    )  # fmt: skip
    monkeypatch.setattr(comparison, "write_comparison", lambda runs, out: called.append((runs, out)))
    periscope(monkeypatch, "compare", "runs/a", "runs/b", "--out", "x.md")
    assert called.pop() == ((Path("runs/a"), Path("runs/b")), Path("x.md"))
    with pytest.raises(SystemExit, match="periscope compare needs the runs"):
        periscope(monkeypatch, "compare")


def test_ask_and_caption_answer_as_eval_py_does(mistakes, monkeypatch, capsys, tmp_path):
    few = ("--max-new-tokens", "6")
    one = here(mistakes, monkeypatch, capsys, "eval.py", "--run", "runs/taken", "--image", "photos/003.png",
               "--prompt", "the dog", *few)  # fmt: skip
    other = here(mistakes, monkeypatch, capsys, "periscope", "ask", "runs/taken", "photos/003.png", "the dog", *few)
    assert one.splitlines()[-1] == other.splitlines()[-1] and one
    (tmp_path / "photos").mkdir()
    for name in ("001.png", "003.png"):
        (tmp_path / "photos" / name).write_bytes((mistakes / "photos" / name).read_bytes())
    written = [tmp_path / "eval.jsonl", tmp_path / "periscope.jsonl"]
    here(mistakes, monkeypatch, capsys, "eval.py", "--run", "runs/taken", "--data", tmp_path / "photos", "--write",
         written[0], *few)  # fmt: skip
    here(mistakes, monkeypatch, capsys, "periscope", "caption", "runs/taken", tmp_path / "photos", "--out",
         written[1], *few)  # fmt: skip
    assert written[0].read_bytes() == written[1].read_bytes() and len(written[0].read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("started", "eval_line", "features_line"),
    [
        ("train.py", "python eval.py --run 'runs/a b'", "periscope features"),
        ("../clone/train.py", "python ../clone/eval.py --run 'runs/a b'", "periscope features"),
        ("/my clone/eval.py", "python '/my clone/eval.py' --run 'runs/a b'", "periscope features"),
        ("periscope train", "periscope eval --run 'runs/a b'", "periscope features"),
        ("/usr/bin/periscope", "periscope eval --run 'runs/a b'", "periscope features"),
        ("notebook.py", "periscope eval --run 'runs/a b'", "periscope features"),
    ],
)
def test_commands_are_spelled_as_the_user_started(started, eval_line, features_line, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    assert console.command("eval", "--run", Path("runs/a b")) == eval_line
    assert console.command("features") == features_line
    eval_alone = eval_line.removesuffix(" --run 'runs/a b'")
    name, by_python = eval_alone.removeprefix("python "), eval_alone.startswith("python ")
    assert console.spelled("../eval.py, eval.py or python eval.py") == f"../eval.py, {name} or {eval_alone}"
    program = name if by_python else f"--no-python {name}"
    assert console.spelled("torchrun --nproc-per-node 8 eval.py -x") == f"torchrun --nproc-per-node 8 {program} -x"


RANKED = ("--loss-drop", "train", "--drop", "0.25", "--max-new-tokens", "4")


@pytest.mark.parametrize(
    ("name", "start", "flags", "learnt"),
    [
        ("eval.py", (), RANKED, "48"),
        ("periscope", ("eval",), RANKED, "48"),
        ("eval.py", (), ("--max-new-tokens", "4"), r"\d+"),  # without the captions of no words
    ],
)
def test_the_line_after_next_runs_as_printed(name, start, flags, learnt, mistakes, monkeypatch, capsys):
    """From eval.py --write to train.py, in both spellings. (The line of train.py is run in test_captions_only.py.)"""
    out = f"words/next-{name}-{len(flags)}.jsonl"
    said = here(mistakes, monkeypatch, capsys, name, *start, "--run", "runs/taken", *flags, "--write", out)
    (line,) = [line.removeprefix("Next: ") for line in said.splitlines() if line.startswith("Next: ")]
    program, *arguments = shlex.split(line)
    if name == "periscope":
        assert (program, arguments[0]) == ("periscope", "train")
    else:
        program, *arguments = arguments
        assert program == "train.py"
    more = ("--steps", "1", "--name", f"next-{name}-{len(flags)}")
    assert re.search(f"texts: {learnt} to learn from", here(mistakes, monkeypatch, capsys, program, *arguments, *more))


def test_every_next_line_of_the_program_is_one_of_those():
    """A new one needs a test that runs it as printed."""
    files = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in APART]
    found = {path.name: path.read_text().count("Next: {") for path in files if "Next: {" in path.read_text()}
    assert found == {"commands.py": 2, "session.py": 2}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_the_package_says_how_to_install_it(name):
    """-S leaves site-packages out, and with them the installed package."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", name], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.strip() == (
        "error: Periscope isn't installed in this Python; run this in the cloned folder first: pip install -e ."
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_older_python_gets_one_sentence(name):
    """The script parses as Python 3.8, and checks the version before it imports anything of ours."""
    text = (ROOT / name).read_text()
    ast.parse(text, feature_version=(3, 8))
    pretend = f"import sys; sys.version_info = (3, 8, 10); exec(compile(open({name!r}).read(), {name!r}, 'exec'))"
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", "-c", pretend], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: Periscope needs Python 3.11 or newer, and this is 3.8"
