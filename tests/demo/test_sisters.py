"""The demo's encoders of sounds and clips, and the one without words: committed, loaded as any other, able to see."""

import json
import math
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from script_runs import command, script

from periscope.demo import clips, sounds
from periscope.demo.scenes import draw_scenes, render
from periscope.errors import PrecomputeError
from periscope.precompute.cli import DEMOS, main
from periscope.precompute.encoders import load_encoder
from periscope.shards.read import FeatureSet
from studies import pretrain_dino, pretrain_media, probe_media
from studies.probe import BACKBONES

ROOT = Path(__file__).parents[2]
SCORES = {"audio": ("caption_recording", "caption_events"), "video": ("caption_clip", "caption_movers")}
SUFFIX = {"audio": ".wav", "video": ".mp4"}


def alone(home: Path, name: str, *arguments: str, fails: bool = False) -> str:
    """As `script`, in a new process: torch can't set its threads in a fork of one that has set them (`one_thread`)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command(name, *arguments), cwd=home, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert "Traceback" not in output and (done.returncode != 0) == fails, output
    return output


@pytest.fixture(autouse=True)
def one_thread():
    """Probes are many small steps: on two threads beside other busy programs they take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "at_least"), [("audio", 0.9), ("video", 0.9)])
def test_a_linear_map_reads_new_media(name, at_least):
    """The aim, on files drawn with a seed that no training or probe used. With few media to fit, it comes out lower."""
    task = probe_media.TASKS[name]
    model, processor = probe_media.load(task)
    scores = probe_media.media_scores(model, processor, task, seed=7, train=300, test=40)
    assert scores["pooled_heldout"] >= at_least and scores["patches_heldout"] >= at_least, scores
    assert scores["pooled_new_pairs"] >= 0.7, scores


@pytest.mark.parametrize("name", ["audio", "video"])
def test_random_weights_give_less(name):
    """The probe can fail: the same network with random weights is read far worse."""
    task = probe_media.TASKS[name]
    _, processor = probe_media.load(task)
    torch.manual_seed(0)
    scores = probe_media.media_scores(pretrain_media.build(task).eval(), processor, task, seed=7, train=60, test=30)
    assert scores["pooled_heldout"] <= 0.5, scores


@pytest.mark.parametrize(
    ("folder", "modality", "shapes"),
    [
        ("ast", "audio", {"pooled": (192,), "patches": (48, 192), "layers": (4, 192)}),
        ("timesformer", "video", {"pooled": (144,), "patches": (128, 144), "layers": (4, 144)}),
        ("dino", "image", {"pooled": (192,), "patches": (36, 192), "layers": (4, 192)}),
    ],
)
def test_loaded_as_any_other_encoder(folder, modality, shapes):
    """`--encoder demo/backbones/ast` and its sisters, and their features against those the probe reads."""
    encoder = load_encoder(f"demo/backbones/{folder}", kinds=tuple(shapes))
    assert encoder.modality == modality
    found = encoder.features(tuple(shapes))
    assert {kind: tuple(entry["shape"]) for kind, entry in found.items()} == shapes

    rng = random.Random(5)
    if folder == "dino":
        picture = render(draw_scenes(5, 1, "heldout")[0], rng)
        model, processor = pretrain_dino.load()
        given = encoder.encode(encoder.preprocess(picture)[None], ("pooled", "patches"))
        wanted = pretrain_dino.features(model, processor, [picture])
    else:
        task = probe_media.TASKS[modality]
        data = task.encode(task.draw(5, 1, "heldout")[0], rng)
        model, processor = probe_media.load(task)
        given = encoder.encode(encoder.inputs(data)[None], ("pooled", "patches"))
        with torch.no_grad():
            vectors, before, _ = probe_media.read(model, task, probe_media.prepare(task, processor, data)[None])
        if modality == "video":
            before = before.unflatten(1, (-1, probe_media.FRAMES)).transpose(1, 2).flatten(1, 2)
        wanted = {"pooled": vectors[-1], "patches": before}
    for kind, tensor in wanted.items():
        assert (given[kind] - tensor).norm() / tensor.norm() < 0.05, kind


@pytest.mark.parametrize("folder", ["ast", "timesformer", "dino"])
def test_cards_and_sizes(folder):
    place = BACKBONES / folder
    card = (place / "README.md").read_text()
    assert "seed" in card and "Probe" in card and "/home" not in card and "/tmp" not in card
    assert (place / "model.safetensors").stat().st_size < 3.2e6
    for path in place.glob("*.json"):
        assert json.loads(path.read_text()) is not None


@pytest.mark.parametrize(
    ("modality", "room"), [("audio", sounds), pytest.param("video", clips, marks=pytest.mark.slow)]
)
def test_the_demo_of_sounds_and_of_clips(tmp_path, monkeypatch, capsys, modality, room):
    """The scripts with `--demo audio|video`, on few media: drawn, encoded by the encoder of their own; then, again,
    nothing. A training takes the recipe of theirs, and what it makes is scored by their task and looks at a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(room, "make", partial(room.make, train=12, heldout=4, new_pairs=4))
    flags = ["--demo", modality, "--demo-seed", "3", "--device", "cpu", "--kinds", "pooled", "patches", "layers"]
    main(flags)
    assert f"features/demo-{modality} is ready" in capsys.readouterr().out
    main(flags)
    assert "nothing to do" in capsys.readouterr().out

    made = FeatureSet(Path("features") / f"demo-{modality}")
    assert made.manifest["encoder"]["name"] == f"demo-{modality}" and made.manifest["modality"] == modality
    assert len(made.keys) == 20 and len(made.heldout) == 8
    texts = made.texts()
    asked = [text for text in texts if len(text.turns) == 2]
    assert asked and all(text.split != "train" and "ask" in text.meta for text in asked)
    assert sum(text.split == "train" for text in texts) == 12

    said = alone(tmp_path, "train.py", "--adapter", "mlp16", "--steps", "4", "--name", "few")
    assert f"recipe: demo-{modality}" in said and "language model is unchanged" in said
    alone(tmp_path, "eval.py", "--run", "runs/few", "--limit", "12")
    found = json.loads(Path("runs/few/eval.json").read_text())
    whole, parts = SCORES[modality]
    for scores in (found["real"], found["shuffled"]):
        assert {whole, parts, "qa_accuracy", "qa_count"} <= set(scores)
    medium = sorted((Path("demo/media") / f"seed-3-{modality}").rglob(f"heldout*{SUFFIX[modality]}"))[0]
    assert alone(tmp_path, "eval.py", "--run", "runs/few", f"--{modality}", str(medium), "--prompt", "").strip()
    other = Path("other.jpg")
    Image.new("RGB", (64, 64)).save(other)
    asked = ("eval.py", "--run", "runs/few", "--image", str(other), "--prompt", "")
    assert "other.jpg was given as image" in alone(tmp_path, *asked, fails=True)

    (Path("demo/media") / f"seed-3-{modality}" / f".{DEMOS[modality]}.json").write_text("{}")
    with pytest.raises(PrecomputeError, match="holds something else"):
        main(flags)


def test_a_part_is_found_among_those_of_other_pictures():
    """The loss of codes that tell the pictures apart, of codes that don't, and of codes that tell another part's."""
    torch.manual_seed(0)
    codes = torch.nn.functional.normalize(torch.randn(16, 9, 96), dim=-1)
    right, found = pretrain_dino.contrast(codes, codes)
    assert found == 1.0 and right < 0.1
    alike, _ = pretrain_dino.contrast(codes[:1].expand(16, -1, -1), codes)
    assert alike > math.log(16) - 0.5
    moved, found = pretrain_dino.contrast(codes, codes.roll(1, dims=1))
    assert moved > math.log(16) - 0.5 and found < 0.3


def test_an_encoder_without_words_tells_its_parts():
    torch.manual_seed(0)
    network = pretrain_dino.Network().eval()
    parts, whole = network(torch.randn(2, 3, 96, 96))
    assert parts.shape == whole.shape == (2, 9, 96)
    assert torch.allclose(parts.norm(dim=-1), torch.ones(2, 9)) and torch.allclose(whole.norm(dim=-1), torch.ones(2, 9))


def test_parts_of_mixed_pictures_are_found_again():
    """Parts come from other pictures, in their own place, and their codes go back to where they belong."""
    torch.manual_seed(0)
    pictures = torch.arange(4.0).view(4, 1, 1, 1) * 10 + torch.arange(9.0).view(1, 1, 3, 3)
    views = pictures.repeat_interleave(32, 2).repeat_interleave(32, 3).expand(-1, 3, -1, -1)
    found, sources = pretrain_dino.mixed(views)
    cells = found[:, 0, 16::32, 16::32].flatten(1)
    assert torch.equal(cells, sources * 10.0 + torch.arange(9.0)) and (sources != sources[:, :1]).any()
    codes = pretrain_dino.unmixed(cells[..., None], sources)[..., 0]
    assert torch.equal(codes, pictures.flatten(1))


def test_two_views_of_a_picture_differ_but_for_what_it_shows():
    torch.manual_seed(0)
    pixels = torch.full((8, 3, 96, 96), 200, dtype=torch.uint8)
    pixels[:, :, 40:56, 40:56] = 0
    found = pretrain_dino.view_of(pixels) * torch.tensor(pretrain_dino.STD).view(3, 1, 1) + 0.88
    assert (found[:, :, 46:50, 46:50].mean((1, 2, 3)) < 0.25).all()
    corners = found[:, :, :8, :8].mean((1, 2, 3))
    assert (corners > 0.5).all() and corners.std() > 0.01


def test_an_empty_place_counts_less():
    """Heads are taught what is there before what isn't."""
    sizes, labels = [3, 2], torch.tensor([[[1, 0], [1, 0]]])
    right = torch.tensor([[[0.0, 9, 0, 0, 9], [9, 0, 0, 9, 0]]])
    missed, made_up = right.clone(), right.clone()
    missed[0, 0] = torch.tensor([9.0, 0, 0, 9, 0])
    made_up[0, 1] = torch.tensor([0.0, 9, 0, 0, 9])
    losses = [pretrain_media.place_loss(logits, labels, sizes).item() for logits in (right, made_up, missed)]
    assert losses[0] < 0.01 and losses[1] < 0.5 * losses[2]


def test_patches_belong_to_the_place_they_show():
    """The slots by which patches are read follow from where the encoders' patches lie in time and space."""
    audio, video = torch.tensor(probe_media.AUDIO.slots).view(4, 12), torch.tensor(probe_media.VIDEO.slots)
    assert audio.tolist() == [[0] * 4 + [1] * 4 + [2] * 4] * 4
    assert video.view(4, 4, 8)[:, 0, 0].tolist() == [0, 0, 1, 1] and len(video) == 128
    numbered = torch.arange(48.0).view(1, 48, 1)
    assert probe_media.by_place(numbered, probe_media.AUDIO)[0, :, 0].tolist() == [19.5, 23.5, 27.5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        (("studies.pretrain_media", "--only", "audio", "--media", "40", "--probe-media", "40", "--batch", "8"), "ast"),
        (
            ("studies.pretrain_media", "--only", "video", "--media", "40", "--probe-media", "40", "--batch", "4"),
            "timesformer",
        ),
        (("studies.pretrain_dino", "--pictures", "500", "--batch", "8"), "dino"),
    ],
)
def test_a_training_writes_what_loads(tmp_path, flags, folder):
    done = subprocess.run(
        [sys.executable, "-m", *flags, "--steps", "2", "--out", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = {"README.md", "config.json", "log.jsonl", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in (tmp_path / folder).iterdir()} == names
    made, committed = (load_encoder(str(place / folder)) for place in (tmp_path, BACKBONES))
    assert made.config == committed.config and made.fingerprint() != committed.fingerprint()
    losses = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
    assert losses[-1]["step"] == 2 and 0 <= losses[-1]["probe"]["patches_heldout"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("modality", "captions", "questions"), [("audio", 0.8, 0.75), ("video", 0.8, 0.75)])
def test_sisters_answer_questions_they_were_never_trained_on(tmp_path, modality, captions, questions):
    """As the demo of pictures: captions alone are learnt from, and questions about new media are answered."""
    script(tmp_path, "precompute.py", "--demo", modality)
    script(tmp_path, "train.py", "--adapter", "mlp16", "--name", "sister")
    script(tmp_path, "eval.py")
    found = json.loads((tmp_path / "runs" / "sister" / "eval.json").read_text())
    real, shuffled = found["real"], found["shuffled"]
    assert real[SCORES[modality][0]] >= captions and real["qa_accuracy"] >= questions, real
    assert shuffled[SCORES[modality][0]] <= 0.15 and shuffled["qa_accuracy"] <= 0.6, shuffled
    for kind in (name for name in real if name.startswith("qa_")):
        assert (real[kind] - shuffled[kind]) / (1 - shuffled[kind]) >= 0.4, (kind, real, shuffled)
    assert set(found["splits"]) == {"heldout", "new_pairs"}
    texts = (tmp_path / "features" / f"demo-{modality}" / "texts.jsonl").read_text().splitlines()
    learnt = [text for text in map(json.loads, texts) if text["split"] == "train"]
    assert learnt and all(len(text["turns"]) == 1 for text in learnt), "training must hold captions alone"
