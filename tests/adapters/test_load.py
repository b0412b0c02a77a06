"""A model folder from a stranger: code that comes with it is never run, whatever is on standard input."""

import json
import os
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


def call(code: str, tmp_path) -> subprocess.CompletedProcess:
    """Run code under the command line's error handling, with "y" on standard input."""
    command = [sys.executable, "-c", f"from periscope.console import run\ndef main():\n    {code}\nrun(main)"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    answers = "y\n" * 5
    return subprocess.run(command, input=answers, capture_output=True, text=True, cwd=tmp_path, env=environment)


@pytest.mark.parametrize("command", COMMANDS)
def test_code_of_a_model_is_refused_in_a_sentence(command, tmp_path):
    marker = make_stranger(tmp_path / "lm", "evil")
    done = call(COMMANDS[command].format(folder=str(tmp_path / "lm")), tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "it brings Python code of its own, which isn't run" in done.stderr and "--trust-remote-code" in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr and not marker.exists()


def test_transformers_itself_would_have_asked_and_run_it(tmp_path):
    """What the test above guards against: the same folder, without the refusal."""
    marker = make_stranger(tmp_path / "lm", "evil")
    done = call(f"from transformers import AutoConfig as f; f.from_pretrained({str(tmp_path / 'lm')!r})", tmp_path)
    assert marker.exists(), done.stderr


def test_a_class_that_transformers_has_is_loaded_without_the_folders_code(tmp_path):
    marker = make_stranger(tmp_path / "lm", "llama")
    tokenizer = json.loads((tmp_path / "lm" / "tokenizer_config.json").read_text())
    tokenizer = {key: value for key, value in tokenizer.items() if key != "auto_map"}
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "lm" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert type(load_language_model(str(tmp_path / "lm")).model).__module__.startswith("transformers.")
    assert not marker.exists()


TRUSTED = (
    "from periscope.adapters.lm.load import load_language_model as f; "
    "lm = f({folder!r}, trust_remote_code=True); print(type(lm.model).__name__, lm.hidden_size)"
)


def test_code_runs_when_the_caller_says_so(tmp_path):
    """With a warning, and in a process of its own: the code stays imported."""
    marker = make_stranger(tmp_path / "lm", "evil")
    done = call(TRUSTED.format(folder=str(tmp_path / "lm")), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["EvilForCausalLM", "32"] and marker.exists()
    assert "warning: Python code that comes with" in done.stderr


def test_only_a_command_line_can_ask_for_it():
    from periscope.training.config import TrainConfig, config_from, parse_request

    assert parse_request(["--trust-remote-code"]).trust_remote_code and not parse_request([]).trust_remote_code
    assert "trust_remote_code" not in TrainConfig().to_flat()
    with pytest.raises(RunError, match="trust_remote_code"):
        config_from({"trust_remote_code": True}, "a stranger's config.toml")
