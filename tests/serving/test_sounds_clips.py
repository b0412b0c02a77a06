"""Sounds and clips in requests: answered as `LoadedModel.ask`, and so eval.py, answers about the same files."""

import base64
import random

import pytest
import torch
from tiny_media import clip, greys

import periscope
from periscope.adapters.generation.decoding import Decoding
from periscope.adapters.io.checkpoint import save_adapter
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.template import Template
from periscope.demo import scenes, sounds
from periscope.evaluation.chat import reply
from periscope.evaluation.config import ServerLimits
from periscope.precompute.encoders import load_encoder

pytest.importorskip("fastapi", reason="FastAPI isn't installed: pip install 'periscope-adapters[serve]'")

from fastapi.testclient import TestClient

from periscope.serving.app import make_app
from periscope.serving.engine import Engine

CHAT = "/v1/chat/completions"
ENCODERS = {"image": "demo", "audio": "demo-audio", "video": "demo-video"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Untrained adapters for the demo's encoders of pictures, sounds and clips, and a file for each."""
    home, rng = tmp_path_factory.mktemp("senses"), random.Random(2)
    lm = load_language_model("demo/backbones/lm")
    for number, (modality, name) in enumerate(ENCODERS.items()):
        torch.manual_seed(number)
        encoder = load_encoder(name)
        pooled = encoder.features(["pooled"])["pooled"]
        shape = FeatureShape("pooled", 1, pooled["shape"][0])
        about = {
            "modality": modality,
            "encoder": encoder.describe(),
            "storage": pooled | {"codec": "fp16"},
            "language_model": {"name": lm.name, "identity": lm.identity()},
            "template": Template(delimiters=(f"{modality}:", "\n")).to_dict(),
            "training": {},
        }
        save_adapter(home / modality, Adapter("linear4", shape, lm.hidden_size, lm.embedding_rms), about)
    scenes.render(scenes.draw_scene(rng, "heldout"), rng).save(home / "one.png")
    (home / "one.wav").write_bytes(sounds.wav(sounds.render(sounds.draw_sound(rng, "heldout"), rng)))
    (home / "one.mp4").write_bytes(clip(greys(24)))
    return home


@pytest.mark.slow
def test_sounds_and_clips_are_answered_as_eval_answers(home):
    model = periscope.load(**{modality: home / modality for modality in ENCODERS}, device="cpu")
    files = {"image": home / "one.png", "audio": home / "one.wav", "video": home / "one.mp4"}
    data = {modality: base64.b64encode(file.read_bytes()).decode() for modality, file in files.items()}
    parts = {
        "image": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data['image']}"}},
        "audio": {"type": "input_audio", "input_audio": {"data": data["audio"], "format": "wav"}},
        "video": {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data['video']}"}},
    }
    question = "How many objects are there?"
    asked = [["audio"], ["video"], ["image", "audio"], ["image", "audio", "video"]]
    with Engine({"senses": model}, ServerLimits()) as engine, TestClient(make_app(engine), "http://localhost") as web:
        for modalities in asked:
            content = [*(parts[modality] for modality in modalities), {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}]
            found = web.post(CHAT, json={"model": "senses", "messages": messages, "max_tokens": 8}).json()
            wanted = "".join(reply(model, {name: [files[name]] for name in modalities}, question, Decoding(8)))
            assert found["choices"][0]["message"]["content"] == wanted != ""
        messages = [{"role": "user", "content": [parts["audio"] | {"input_audio": {"data": "AAAA"}}]}]
        refused = web.post(CHAT, json={"model": "senses", "messages": messages})
        assert refused.status_code == 400 and "error" in refused.json()
