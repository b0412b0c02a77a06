"""One question about a picture, sent by the official client to `periscope serve` and to `transformers serve`."""

import base64
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from export_models import pictures, save_patch_adapter
from processes import free_port

import periscope
from periscope.exports.llava import export_llava

pytest.importorskip("uvicorn", reason="uvicorn isn't installed: pip install 'periscope-adapters[serve]'")
openai = pytest.importorskip("openai", reason="the client of OpenAI isn't installed: pip install openai")
pytestmark = pytest.mark.slow
QUESTIONS = ("What is in the picture?", "What colour is the star?", "the quick brown fox")
TOKENS = 12
PERISCOPE, TRANSFORMERS = (
    "from periscope.cli import main; main()",
    "from transformers.cli.transformers import main; main()",
)


@contextmanager
def served(program: str, log: Path, *arguments: str):
    """The client of a server that runs while the context lasts."""
    port = free_port()
    where = os.pathsep.join([str(Path(periscope.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    with log.open("w") as out:
        command = [sys.executable, "-c", program, "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
        command += ["--device", "cpu"]
        environment = os.environ | {"PYTHONPATH": where, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    try:
        for _ in range(1200):
            try:
                client.models.list()
                break
            except openai.APIConnectionError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield client
    finally:
        process.terminate()
        process.wait(60)


def answers(client, model: str, picture: Path) -> list[str]:
    """What a server says to each question about a picture."""
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    said = []
    for question in QUESTIONS:
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": parts}], max_tokens=TOKENS
        )
        said.append(answer.choices[0].message.content.strip())
    return said


def test_servers_give_the_answers_of_the_command_line(tmp_path):
    """On a picture of the tower's own size, so that no framing differs."""
    folder = save_patch_adapter(tmp_path / "eyes", tmp_path, "siglip", family="smollm")
    picture = tmp_path / "picture.png"
    pictures()[3].save(picture)
    export_llava(folder, tmp_path / "llava", precision="fp32")
    run = [sys.executable, str(Path(periscope.__file__).parent / "eval.py"), "--run", str(folder), "--device", "cpu"]
    spoken = []
    for question in QUESTIONS:
        asked = [*run, "--image", str(picture), "--prompt", question, "--max-new-tokens", str(TOKENS)]
        done = subprocess.run(asked, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        assert not done.returncode, done.stderr
        spoken.append(done.stdout)
    with served(PERISCOPE, tmp_path / "periscope.log", str(folder)) as client:
        ours = answers(client, "eyes", picture)
    with served(TRANSFORMERS, tmp_path / "transformers.log", str(tmp_path / "llava")) as client:
        theirs = answers(client, str(tmp_path / "llava"), picture)
    assert len(set(ours)) > 1
    assert all(text.rstrip().endswith(words) and words for text, words in zip(spoken, ours, strict=True))
    assert theirs == ours
