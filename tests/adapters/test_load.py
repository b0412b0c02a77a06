"""A model folder from a stranger: code that comes with it is never run, whatever is on standard input."""

import json
import os
import re
import subprocess
import sys

import pytest
import tiny

from periscope.adapters.lm.load import load_language_model
from periscope.errors import RunError

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({marker!r}).write_text("this code ran")
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilForCausalLM(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""
COMMANDS = {
    "load": "from periscope.adapters.lm.load import load_language_model as f; f({folder!r})",
    "merge": "from pathlib import Path; from periscope.adapters.io.merge_lora import refuse_merge as f; "
    "f(Path('out'), {folder!r}, True)",
    "tiny": "from pathlib import Path; from periscope.training.models.tiny import tiny_language_model as f; "
    "f({folder!r}, Path('tiny'))",
}
TRUSTED = (
    "from periscope.adapters.lm.load import load_language_model as f; "
    "lm = f({folder!r}, trust_remote_code=True); print(type(lm.model).__name__, lm.hidden_size)"
)


def make_stranger(folder, model_type: str):
    """A model folder with code that leaves a marker when it runs, and the marker's path."""
    tiny.save_language_model("llama", folder)
    marker = folder.parent / "marker"
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text()) | {"model_type": model_type}
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return marker


def call(codes: dict[str, str], folder) -> subprocess.CompletedProcess:
    """Run each code under the command line's error handling, with "y" on standard input, all in one process that
    imports what they share once. A line on stdout and stderr says which begins, and what its exit status was.
    """
    program = ["import sys, traceback", "from periscope.console import run"]
    for number, (name, code) in enumerate(codes.items()):
        begin = f"print('\\nbegins {name}'); print('\\nbegins {name}', file=sys.stderr)"
        program += [begin, f"def main{number}():\n    {code}", f"try: run(main{number})"]
        program += ["except SystemExit as left: print(left.code, file=sys.stderr); print('status', bool(left.code))"]
        program += ["except BaseException: traceback.print_exc()"]
    environment = os.environ | {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    command, answers = [sys.executable, "-c", "\n".join(program)], "y\n" * 99
    return subprocess.run(command, input=answers, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """(command -> marker of the folder it was given, the process that ran them all). "asks" is transformers itself,
    without the refusal, and "trusted" loads by request.
    """
    home, markers, codes = tmp_path_factory.mktemp("strangers"), {}, {}
    asks = "from transformers import AutoConfig as f; f.from_pretrained({folder!r})"
    for name, code in {**COMMANDS, "asks": asks, "trusted": TRUSTED}.items():
        (home / name).mkdir()
        markers[name] = make_stranger(home / name / "lm", "evil")
        codes[name] = code.format(folder=str(home / name / "lm"))
    return markers, call(codes, home)


def said_of(done: subprocess.CompletedProcess, name: str) -> tuple[str, str]:
    parts = [re.split(rf"^begins {name}\n", stream, flags=re.M)[1] for stream in (done.stdout, done.stderr)]
    return re.split("^begins ", parts[0], flags=re.M)[0], re.split("^begins ", parts[1], flags=re.M)[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_code_of_a_model_is_refused_in_a_sentence(command, strangers):
    markers, done = strangers
    out, errors = said_of(done, command)
    assert out.strip() == "status True" and "Traceback" not in errors, out + errors
    assert "it brings Python code of its own, which isn't run" in errors and "--trust-remote-code" in errors
    assert "[y/N]" not in out + errors and not markers[command].exists()


def test_transformers_itself_would_have_asked_and_run_it(strangers):
    """What the test above guards against: the same folder, without the refusal."""
    markers, done = strangers
    assert markers["asks"].exists(), done.stderr


def test_a_class_that_transformers_has_is_loaded_without_the_folders_code(tmp_path):
    marker = make_stranger(tmp_path / "lm", "llama")
    tokenizer = json.loads((tmp_path / "lm" / "tokenizer_config.json").read_text())
    tokenizer = {key: value for key, value in tokenizer.items() if key != "auto_map"}
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "lm" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert type(load_language_model(str(tmp_path / "lm")).model).__module__.startswith("transformers.")
    assert not marker.exists()


def test_code_runs_when_the_caller_says_so(strangers):
    """With a warning, and in a process of its own: the code stays imported."""
    markers, done = strangers
    out, errors = said_of(done, "trusted")
    assert done.returncode == 0, done.stderr
    assert out.split() == ["EvilForCausalLM", "32"] and markers["trusted"].exists()
    assert "warning: Python code that comes with" in errors


def test_only_a_command_line_can_ask_for_it():
    from periscope.training.config import TrainConfig, config_from, parse_request

    assert parse_request(["--trust-remote-code"]).trust_remote_code and not parse_request([]).trust_remote_code
    assert "trust_remote_code" not in TrainConfig().to_flat()
    with pytest.raises(RunError, match="trust_remote_code"):
        config_from({"trust_remote_code": True}, "a stranger's config.toml")
