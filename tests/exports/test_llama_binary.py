"""mmproj files in llama.cpp itself (mtmd, a prebuilt binary of npm): image vectors, token ids, answers."""

import json
import random
from pathlib import Path

import pytest
import tiny
import torch
from export_models import load_here, pictures, save_patch_adapter, tokens_here, tower_folder, turns_of
from llama_binary import PROBABILITIES, ask, llama_node, probed, write_llama, write_probe
from PIL import Image, ImageDraw
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from periscope import train
from periscope.adapters.lm.load import load_language_model
from periscope.exports.gguf import CHAT_TEMPLATE, MMPROJ, export_gguf, write_mmproj
from periscope.exports.prompt_form import MTMD_MARKER, messages_of, spoken_ids
from periscope.inference import adapter_folder
from periscope.precompute import tiny_encoders
from periscope.precompute.cli import main as precompute
from periscope.precompute.encoders.registry import load_encoder

pytestmark = pytest.mark.slow
DEMO_LM = Path(__file__).resolve().parents[2] / "demo/backbones/lm"
WIDTH = 32  # of the tiny language models


@pytest.fixture(scope="module")
def node():
    return llama_node()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("binary")
    for k, picture in enumerate(pictures()):
        picture.save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def probe(home):
    tokenizer = tiny.FAMILIES["qwen2"][1]()
    return write_probe(home / "probe.gguf", WIDTH, tokenizer), tokenizer


def seen(node, probe, asked: list[tuple[Path, Path]], width: int = WIDTH) -> list[torch.Tensor]:
    """The last image token that llama.cpp makes of each (mmproj, picture): (hidden_size,)."""
    file, tokenizer = probe
    requests = [
        {
            **PROBABILITIES,
            "mmproj": str(mmproj),
            "media_paths": [str(picture)],
            "prompt": MTMD_MARKER,
            "n_probs": len(tokenizer),
        }
        for mmproj, picture in asked
    ]
    return [probed(answer, width, tokenizer) for answer in ask(node, file, requests)]


@pytest.mark.parametrize("precision, bound", [("f32", 2e-3), ("f16", 5e-3)])
@pytest.mark.parametrize("spec", ["mlp", "linear"])
@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("tower", ["siglip", "timm_siglip"])
def test_image_vectors(node, home, probe, tower, layer, spec, precision, bound):
    """Of pictures of five sizes. This build's filter is the legacy one; Pillow's misses by far."""
    name = f"{tower}{layer}{spec}{precision}"
    folder = save_patch_adapter(home / name, home, tower, spec=spec, layer=layer)
    export_gguf(folder, home / f"{name}-out", precision=precision)
    file = home / f"{name}-out" / MMPROJ
    shown = [home / f"{k}.png" for k in range(len(pictures()))]
    worst = other = 0.0
    for vector, picture in zip(seen(node, probe, [(file, path) for path in shown]), pictures(), strict=True):
        ours = tokens_here(folder, picture, legacy=True)[-1]
        assert torch.cosine_similarity(vector, ours, dim=0) > 0.9999
        worst = max(worst, ((vector - ours).abs().max() / ours.abs().max()).item())
        other = max(other, ((vector - tokens_here(folder, picture)[-1]).abs().max() / ours.abs().max()).item())
    print(f"{name}: largest difference {worst:.2g} of the largest value; with Pillow's filter {other:.2g}")
    assert worst < bound and other > 4 * worst
    assert precision == "f16" or other > 10 * bound


@pytest.mark.parametrize("inner", [20, 48])
@pytest.mark.parametrize("precision, bound", [("f32", 2e-3), ("f16", 5e-3)])
def test_a_hidden_width_of_its_own(node, home, probe, inner, precision, bound):
    """Narrower and wider than the language model."""
    name = f"inner{inner}{precision}"
    folder = save_patch_adapter(home / name, home, inner=inner)
    export_gguf(folder, home / f"{name}-out", precision=precision)
    worst, shown = 0.0, [home / f"{k}.png" for k in range(len(pictures()))]
    asked = [(home / f"{name}-out" / MMPROJ, path) for path in shown]
    for vector, picture in zip(seen(node, probe, asked), pictures(), strict=True):
        ours = tokens_here(folder, picture, legacy=True)[-1]
        worst = max(worst, ((vector - ours).abs().max() / ours.abs().max()).item())
    print(f"{name}: largest difference {worst:.2g} of the largest value")
    assert worst < bound


def test_the_lmstudio_recipe(node, home, monkeypatch):
    """Trained in miniature, from pictures to the answers of llama.cpp's own graph, with nothing to note."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    (home / "media").mkdir()
    sides = ((48, 31), (30, 48), (48, 48), (48, 11))  # as long as the tower's square, so that no filter matters
    shown = [pictures()[k % 5].resize(size) for k, size in enumerate(sides * 2)]
    for k, picture in enumerate(shown):
        picture.save(home / f"media/{k}.png")
        (home / f"media/{k}.txt").write_text(f"the {k}. picture")
    precompute(["--recipe", "lmstudio", "--tiny", "--data", "media", "--out", "set", "--device", "cpu"])
    flags = ["--recipe", "lmstudio", "--tiny", "--features", "set", "--steps", "3", "--name", "lmstudio"]
    monkeypatch.setattr("sys.argv", ["train.py", *flags, "--device", "cpu"])
    train.main()
    folder = adapter_folder(Path("runs/lmstudio"))
    assert export_gguf(folder, home / "lmstudio-out", precision="f32") == []
    model, encoder = load_here(folder)
    assert encoder.image_size == 48
    tokenizer, width, scale = tiny.FAMILIES["qwen2"][1](), model.lm.hidden_size, 20.0  # the vectors are small
    file = write_probe(home / "lmstudio.gguf", width, tokenizer, scale)
    asked = [(home / "lmstudio-out" / MMPROJ, home / f"media/{k}.png") for k in range(4)]
    for vector, picture in zip(seen(node, (file, tokenizer), asked, width), shown, strict=False):
        ours = last_token(model.adapter, encoder, picture)
        likeness = torch.cosine_similarity(vector, ours, dim=0).item()
        print(f"lmstudio: cosine {likeness:.6f}, largest difference {(vector / scale - ours).abs().max():.2g}")
        assert likeness > 0.9999


def test_training_framed_as_llama_cpp_does(node, home, probe):
    """With --resize llama.cpp: pictures as long as the tower's square, so that no filter matters."""
    folder = save_patch_adapter(home / "framed", home, choices={"resize": "llama.cpp"})
    assert not any("pads pictures" in note for note in export_gguf(folder, home / "framed-out"))
    model, encoder = load_here(folder)
    stretching = load_encoder(tower_folder(home, "siglip"), kinds=("patches",), resize="stretch")
    shown = [pictures()[k].resize(size) for k, size in enumerate(((32, 21), (20, 32), (32, 32), (32, 7)))]
    for k, picture in enumerate(shown):
        picture.save(home / f"framed{k}.png")
    asked = [(home / "framed-out" / MMPROJ, home / f"framed{k}.png") for k in range(len(shown))]
    for vector, picture in zip(seen(node, probe, asked), shown, strict=True):
        ours, other = (last_token(model.adapter, each, picture) for each in (encoder, stretching))
        assert torch.cosine_similarity(vector, ours, dim=0) > 0.9999
        assert picture.size == (32, 32) or torch.cosine_similarity(vector, other, dim=0) < 0.999


@torch.no_grad()
def last_token(adapter, encoder, picture: Image.Image) -> torch.Tensor:
    """The last vector of a picture as the encoder itself frames it: (hidden_size,)."""
    return adapter(encoder.encode(encoder.preprocess(picture)[None], ["patches"])["patches"])[0, -1]


def test_every_image_token_stands_where_ours_does(node, home, probe):
    """The probe tells the last token; each takes the last place in turn, with its patch and its position."""
    folder = save_patch_adapter(home / "order", home)
    model, encoder = load_here(folder)
    picture, last = pictures()[3], 15
    with torch.no_grad():
        ours = model.adapter(encoder.encode(encoder.preprocess(picture)[None], ["patches"])["patches"])[0]
    asked = []
    rows = encoder.model.embeddings.position_embedding.weight.data
    for k in range(last + 1):
        rows[[k, last]] = rows[[last, k]]
        write_mmproj(home / f"order{k}.gguf", model.adapter, encoder, "f32")
        rows[[k, last]] = rows[[last, k]]
        moved, boxes = picture.copy(), [(8 * (n % 4), 8 * (n // 4)) for n in (k, last)]
        for there, here in (boxes, boxes[::-1]):
            moved.paste(picture.crop((*here, here[0] + 8, here[1] + 8)), there)
        moved.save(home / f"order{k}.png")
        asked.append((home / f"order{k}.gguf", home / f"order{k}.png"))
    found = torch.stack(seen(node, probe, asked))
    assert torch.cosine_similarity(found, ours, dim=-1).min() > 0.9999
    assert torch.cosine_similarity(found, ours.roll(1, 0), dim=-1).min() < 0.999


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_prompts_and_ids(node, home, style):
    """The chat template in llama.cpp's own Jinja, and the ids of what stands around the picture."""
    template = {"style": style, "delimiters": ("Scene:", "\n")}
    folder = save_patch_adapter(home / style, home, family="smollm", template=template)
    export_gguf(folder, home / f"{style}-out")
    model, _ = load_here(folder)
    lm = write_llama(home / f"{style}.gguf", model.lm.model, model.lm.tokenizer)
    text = (home / f"{style}-out" / CHAT_TEMPLATE).read_text()
    for question in (None, "What is in the picture?"):
        messages = messages_of(model.prompt.template, MTMD_MARKER, question)
        rendered = ask(node, lm, [{"messages": messages, "template": text}])[0]["prompt"]
        stretches = rendered.split(MTMD_MARKER)
        found = ask(node, lm, [{"tokenize": part} for part in stretches if part])
        ours = [list(ids) for ids in spoken_ids(model.prompt, question) if ids]
        assert [answer["tokens"] for answer in found] == ours


def demo_sized_tower(folder: Path) -> str:
    """A SigLIP as large as the demo's encoder: 96 pixels, 36 patches, 6 blocks of width 192."""
    config = SiglipVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=12, image_size=96,
        patch_size=16, vision_use_head=False,
    )  # fmt: skip
    tiny_encoders.roughen(SiglipVisionModel(config)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 96, "width": 96}).save_pretrained(folder)
    return f"transformers:{folder}"


def drawn(k: int) -> Image.Image:
    """A picture of a few shapes, 96 x 96, so that no framing differs."""
    chance = random.Random(k)
    image = Image.new("RGB", (96, 96), chance.choice(("white", "navy", "olive")))
    for _ in range(4):
        x, y = chance.randrange(70), chance.randrange(70)
        colour = chance.choice(("red", "lime", "blue", "yellow", "black"))
        ImageDraw.Draw(image).ellipse((x, y, x + 26, y + 26), fill=colour)
    return image


def test_answers_of_a_demo_sized_adapter(node, home, monkeypatch):
    """On the demo's language model: greedy answers about JPEG files, which llama.cpp decodes with code of its own."""
    tower = demo_sized_tower(home / "demo-siglip")
    monkeypatch.setattr("export_models.tower_folder", lambda *_: tower)
    folder = save_patch_adapter(home / "demo", home, lm_folder=DEMO_LM, template={"delimiters": ("Scene:", "\n")})
    export_gguf(folder, home / "demo-out", precision="f32")
    model, encoder = load_here(folder)
    file = write_llama(home / "demo.gguf", model.lm.model, model.lm.tokenizer)
    requests, ours = [], []
    for k in range(12):
        drawn(k).save(home / f"drawn{k}.jpg", quality=90)
        picture = Image.open(home / f"drawn{k}.jpg").convert("RGB")
        features = {"picture": encoder.encode(encoder.preprocess(picture)[None], ["patches"])["patches"][0]}
        for question in (None, "What colour is the circle?"):
            segments = model.prompt.segments(turns_of(question), ["picture"], answer=False)
            ours.append(model.generate([segments], features, max_new_tokens=16)[0])
            before, after = (model.lm.tokenizer.decode(list(ids)) for ids in spoken_ids(model.prompt, question))
            requests.append(
                {
                    "mmproj": str(home / "demo-out" / MMPROJ),
                    "media_paths": [str(home / f"drawn{k}.jpg")],
                    "prompt": before.removeprefix("<s>") + MTMD_MARKER + after,
                    "n_predict": 16,
                }
            )
    theirs = [answer["text"].strip() for answer in ask(node, file, requests)]
    same = sum(here == there for here, there in zip(ours, theirs, strict=True))
    print(f"{same} of {len(ours)} answers are the same, {len(set(ours))} of them different")
    assert len(set(ours)) >= 3 and same >= 23, json.dumps([ours, theirs])


def test_the_demo_language_model_is_the_same_there(node, home):
    lm = load_language_model(str(DEMO_LM), precision="fp32")
    file = write_llama(home / "words.gguf", lm.model, lm.tokenizer)
    words = "Question: What colour is the star, and where is it? Answer:"
    (answer,) = ask(node, file, [{"tokenize": words}])
    assert answer["tokens"][-3:] == lm.tokenizer(words).input_ids[-3:]
