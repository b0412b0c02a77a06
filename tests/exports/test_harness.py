"""lmms-eval with an adapter: its own evaluator, on a tiny task of this folder."""

import importlib
import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from PIL import Image

import periscope

pytest.importorskip("lmms_eval", reason="lmms-eval isn't installed: pip install lmms-eval 'filelock<4'")
pytestmark = pytest.mark.slow

from lmms_eval.evaluator import simple_evaluate  # noqa: E402
from lmms_eval.models import MODEL_REGISTRY_V2  # noqa: E402
from lmms_eval.tasks import TaskManager  # noqa: E402

ROOT = Path(__file__).parents[2]
COUNT = 12
TASK = """
task: tiny_colours
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: generate_until
doc_to_visual: !function tiny_colours.visual
doc_to_text: "What is it?"
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 8, do_sample: false, temperature: 0, until: ["\\n\\n"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
FUNCTIONS = """
from PIL import Image

def visual(doc):
    return [Image.open(doc["file"]).convert("RGB")]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An adapter, pictures, and as their right answers what the adapter says of them."""
    home = tmp_path_factory.mktemp("harness")
    tiny.save_tiny_adapter(home / "eyes", home, {"features": "photos"}, family="qwen2")
    model = periscope.load(home / "eyes", device="cpu")
    rows = []
    for number in range(COUNT):
        file = home / f"{number}.png"
        Image.effect_noise((48, 32), 10 + 20 * number).convert("RGB").save(file)
        answer = model.ask(file, "What is it?", 8).split("\n\n")[0].strip()
        rows.append({"file": str(file), "answer": answer})
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def evaluate(home: Path, folder: Path, **options) -> dict:
    folder.mkdir()
    (folder / "tiny_colours.py").write_text(FUNCTIONS)
    (folder / "tiny_colours.yaml").write_text(TASK.format(data=home / "rows.jsonl"))
    found = simple_evaluate(
        model="periscope",
        model_args=f"run={home / 'eyes'}",
        tasks=["tiny_colours"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
        **options,
    )
    assert found is not None
    return found["results"]["tiny_colours"]


@pytest.fixture(autouse=True)
def registered():
    """The model, as lmms-eval finds it by the entry point of an installed Periscope."""
    place = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    module, _, name = place["periscope"].partition(":")
    MODEL_REGISTRY_V2.register_manifest(getattr(importlib.import_module(module), name)(), overwrite=True)


@pytest.mark.parametrize("batch", [1, 5])
def test_answers_are_the_adapters_own(home, tmp_path, batch):
    found = evaluate(home, tmp_path / "task", batch_size=batch)
    assert found["exact_match,none"] == 1.0


def test_choices_are_compared_by_their_losses(home):
    """Asked directly: the evaluator of lmms-eval 0.7.3 makes text of losses, whatever model gives them."""
    from periscope.exports.harness import Harness

    harness = Harness(str(home / "eyes"), device="cpu")
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    harness.task_dict = {"tiny_colours": {"train": rows}}
    losses = []
    for number, row in enumerate(rows):
        place = (lambda doc: [Image.open(doc["file"])], number, "tiny_colours", "train")
        asked = [SimpleNamespace(args=("What is it?", words, *place)) for words in (f" {row['answer']}", "a b c")]
        (own, greedy), (other, also) = harness.loglikelihood(asked)
        assert greedy and not also
        losses.append((own, other))
    own, other = (sum(each) / COUNT for each in zip(*losses, strict=True))
    assert 0 < own < other


def test_decoding_and_stops():
    from periscope.exports.harness import cut, decoding_of

    decoding, until = decoding_of({"max_new_tokens": 5, "do_sample": False, "temperature": 0.7, "until": "\n"})
    assert (decoding.max_new_tokens, decoding.temperature, until) == (5, 0, ["\n"])
    assert decoding_of({"temperature": 0.7, "top_p": 0.9})[0].top_p == 0.9
    assert cut(" a b\nc", ["", "\n"]) == "a b"
