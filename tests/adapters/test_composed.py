"""Several adapters on one language model: each alone as it was, a mixed prompt's form, and what doesn't go together."""

import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from periscope import inference as live
from periscope.adapters.composed import ComposedModel, ComposedPrompt
from periscope.adapters.io.checkpoint import save_adapter
from periscope.adapters.lm.injection import Injection
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import SOFT_PROMPT, SOFT_PROMPT_END
from periscope.adapters.prompting.template import Template, default_template
from periscope.demo import scenes, sounds
from periscope.errors import AdapterError
from periscope.precompute.encoders import load_encoder
from periscope.shards.read import FeatureSet
from periscope.training.run import Run
from studies import compose, corpus

ROOT = Path(__file__).parents[2]

SHAPES = {
    "image": FeatureShape("patches", 4, 6, (2, 2)),
    "audio": FeatureShape("pooled", 1, 5),
    "video": FeatureShape("pooled", 1, 7),
}
SPECS = {"image": "mlp", "audio": "mlp3", "video": "linear2"}
TEMPLATES = {
    "image": {"row_separator": "&", "rows": 2, "delimiters": ("[", "]"), "soft_prompt": "around"},
    "audio": {"delimiters": ("{", ""), "question": "Q {} A "},
    "video": {"delimiters": ("", ")"), "soft_prompt": "after", "eos": False},
}
SOFT = {"image": 3, "audio": 0, "video": 2}


def part(lm, modality, **fields):
    torch.manual_seed(len(modality) + ord(modality[0]))
    adapter = Adapter(SPECS[modality], SHAPES[modality], lm.hidden_size, lm.embedding_rms, SOFT[modality])
    template = default_template(lm.tokenizer, **{**TEMPLATES[modality], **fields})
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, template, modality))


def features_of(modality, number):
    shape = SHAPES[modality]
    size = (shape.width,) if shape.kind == "pooled" else (shape.tokens, shape.width)
    return torch.randn(size, generator=torch.Generator().manual_seed(number)).half()


ASKED = [{"role": "user", "content": "What colour is the star?"}, {"role": "assistant", "content": "blue"}]


@pytest.mark.parametrize("family", ["llama", "qwen2", "mamba", "opt"])
def test_an_adapters_answers_alone_are_what_they_were_without_the_others(family, language_model_folder):
    """To the last bit: loss, answers, and gradients; from the other adapter they are others."""
    lm = load_language_model(str(language_model_folder(family)))
    parts = {modality: part(lm, modality) for modality in SHAPES}
    together = ComposedModel(parts)
    for modality, alone in parts.items():
        soft = alone.adapter.soft_prompt is not None
        given = {f"{i}": features_of(modality, i) for i in range(3)}
        named = {f"{modality}:{i}": row for i, row in given.items()}
        texts = [alone.prompt.segments(ASKED, [i], soft_prompt=soft) for i in given]
        same = [together.prompt.segments(ASKED, [i]) for i in named]
        assert [s.ids for text in texts for s in text] == [s.ids for text in same for s in text]
        want, found = alone.loss(texts, given), together.loss(same, named)
        assert torch.equal(want[0], found[0]) and want[1] == found[1]
        weights = list(alone.adapter.parameters())
        grads = [torch.autograd.grad(loss, weights) for loss in (want[0], found[0])]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
        ask = [alone.prompt.segments(ASKED, [i], answer=False, soft_prompt=soft) for i in given]
        asked = [together.prompt.segments(ASKED, [i], answer=False) for i in named]
        assert alone.generate(ask, given, 6) == together.generate(asked, named, 6)
        wrong = "video" if modality == "audio" else "audio"
        with pytest.raises(RuntimeError):  # features of another width
            together.slots([together.prompt.segments(ASKED, [f"{wrong}:0"])], {f"{wrong}:0": given["0"]})


def read(prompt, words, media, **how):
    """A text as people read it: media in angle brackets with their row, soft prompts as a star, its end as a plus."""
    shown = []
    for s in prompt.segments([{"role": "user", "content": words}, ASKED[1]], media, answer=False, **how):
        bare = s.slot.partition(":")[2] if s.slot else ""
        star = {SOFT_PROMPT: f"*{s.slot[:1]}", SOFT_PROMPT_END: f"+{s.slot[:1]}"} if s.slot else {}
        row = f".{s.part[0]}" if s.part else ""
        shown.append(star.get(bare, f"<{s.slot}{row}>") if s.slot else prompt.tokenizer.decode(s.ids))
    return "".join(shown)


def composed_prompt(soft=(), **fields):
    tokenizer = tiny.byte_level(bos=True)
    prompts = {m: Prompt(tokenizer, Template(**{**TEMPLATES[m], **fields}), m) for m in TEMPLATES}
    return ComposedPrompt(prompts, soft)


def test_the_form_of_a_mixed_prompt_by_hand():
    prompt = composed_prompt()
    both = ["audio:0", "image:1"]
    assert read(prompt, "the dog", both) == "<s>{<audio:0>[<image:1.0>&<image:1.1>]Question: the dog Answer:"
    marked = read(prompt, "is <image> the <audio> dog", both)
    assert marked == "<s>Question: is[<image:1.0>&<image:1.1>]the{<audio:0>dog Answer:"
    several = read(prompt, "<image> or <image>, <audio>", ["image:0", "audio:1", "image:2"])
    assert several.index("<image:0.0>") < several.index("<image:2.0>") < several.index("<audio:1>")
    assert read(prompt, "the dog", ["audio:0"]) == "<s>{<audio:0>Q the dog A"
    assert read(prompt, "the <image> dog", ["audio:0"]) == "<s>Q the{<audio:0>dog A"  # as its texts have it
    assert read(prompt, "a <video> tag", []) == "<s>Question: a <video> tag Answer:"
    for words, media in (("<image> <image>", both), ("<image>", both), ("a <video>", both), ("the <video>", both[:1])):
        with pytest.raises(AdapterError, match="mark"):
            read(prompt, words, media)


def test_soft_prompts_stand_at_their_own_media():
    """Each template's place, for the adapters whose media occur and no others."""
    everything, three = frozenset(TEMPLATES), ["audio:0", "image:1", "video:2"]
    picture = "[<image:1.0>&<image:1.1>]"
    prompt = composed_prompt(everything)
    assert read(prompt, "dog", three) == f"<s>*a{{<audio:0>{picture}<video:2>)*v*iQuestion: dog+i Answer:"
    assert read(prompt, "dog", three, soft_prompt=False) == f"<s>{{<audio:0>{picture}<video:2>)Question: dog Answer:"
    assert read(prompt, "dog", three[:2]) == f"<s>*a{{<audio:0>{picture}*iQuestion: dog+i Answer:"
    assert (
        read(prompt, "dog <audio> fox <image>", three[:2]) == f"<s>*iQuestion: dog*a{{<audio:0>fox+i{picture} Answer:"
    )
    assert read(composed_prompt(everything, soft_prompt="first"), "dog", three[:2]) == (
        f"*i*a<s>{{<audio:0>{picture}Question: dog Answer:"
    )
    assert "*" not in read(composed_prompt(everything), "dog", [])


def test_what_cannot_stand_together_is_refused(language_model_folder):
    lm, other = (load_language_model(str(language_model_folder("llama"))) for _ in range(2))
    with pytest.raises(AdapterError, match="audio adapter is on another language model"):
        ComposedModel({"image": part(lm, "image"), "audio": part(other, "audio")})
    shape = FeatureShape("layers", 1, 6)
    where = Injection(lm.hidden_size, 0, 1, compat=False)
    inner = Adapter("epalm", shape, lm.hidden_size, lm.embedding_rms, injection=where)
    inside = AdaptedModel(lm, inner, Prompt(lm.tokenizer, Template()))
    with pytest.raises(AdapterError, match="inner layers"):
        ComposedModel({"image": inside, "audio": part(lm, "audio")})
    alone = ComposedModel({"image": inside})
    text = alone.prompt.segments(ASKED, ["image:0"], answer=False)
    want = inside.prompt.segments(ASKED, ["0"], answer=False)
    rows = torch.randn(1, 6).half()
    assert alone.generate([text], {"image:0": rows}, 4) == inside.generate([want], {"0": rows}, 4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Adapter folders for the demo's encoders and language model, untrained."""
    home = tmp_path_factory.mktemp("adapters")
    lm = load_language_model("demo/backbones/lm")
    other = load_language_model(str(tiny.save_language_model("llama", home / "lm")))
    made = {}
    for name, modality, encoder, on, template in (
        ("eyes", "image", "demo", lm, Template(delimiters=("Scene:", "\n"))),
        ("ears", "audio", "demo-audio", lm, Template(delimiters=("Sound:", "\n"))),
        ("odd", "audio", "demo-audio", lm, Template(delimiters=("Sound:", "\n"), question="{}")),
        ("stranger", "audio", "demo-audio", other, Template()),
    ):
        torch.manual_seed(3)
        described = load_encoder(encoder)
        pooled = described.features(["pooled"])["pooled"]
        adapter = Adapter("linear4", FeatureShape("pooled", 1, pooled["shape"][0]), on.hidden_size, on.embedding_rms)
        about = {
            "modality": modality,
            "encoder": described.describe(),
            "storage": pooled | {"codec": "fp16"},
            "language_model": {"name": on.name, "identity": on.identity()},
            "template": template.to_dict(),
            "training": {},
        }
        save_adapter(home / name, adapter, about)
        made[name] = home / name
    rng = random.Random(2)
    made["picture"] = home / "one.jpg"
    scenes.render(scenes.draw_scene(rng, "heldout"), rng).save(made["picture"])
    made["other picture"] = home / "two.png"
    scenes.render(scenes.draw_scene(rng, "heldout"), rng).save(made["other picture"])
    made["sound"] = home / "three.wav"
    made["sound"].write_bytes(sounds.wav(sounds.render(sounds.draw_sound(rng, "heldout"), rng)))
    return made


def test_live_answers_with_several_adapters_as_with_each_alone(folders, capsys):
    eyes, ears = live.load(folders["eyes"]), live.load(folders["ears"])
    both = live.load(image=folders["eyes"], audio=folders["ears"])
    picture, sound, question = folders["picture"], folders["sound"], "How many objects are there?"
    assert both.ask(picture, question, 8) == eyes.ask(picture, question, 8) != ""
    assert both.ask(sound, question, 8) == ears.ask(str(sound), question, 8)
    assert both.caption(picture, 8) == eyes.caption(Image.open(picture), 8)
    assert torch.equal(both.features(sound), ears.features(sound))

    mixed = both.ask([picture, sound], question, 8)
    assert mixed == both.ask({"image": picture, "audio": sound.read_bytes()}, question, 8)
    segments = both.model.prompt.segments([{"role": "user", "content": question}], ["image:0", "audio:1"], answer=False)
    words = [s.slot or both.model.lm.tokenizer.decode(s.ids) for s in segments]
    assert words == ["<s>Scene:", "image:0", "\nSound:", "audio:1", f"\nQuestion: {question} Answer:"]

    two = eyes.ask([picture, folders["other picture"]], "<image> and <image>", 8)
    assert isinstance(two, str) and both.ask([picture, folders["other picture"]], "<image> and <image>", 8) == two
    assert isinstance(both.ask([], question, 4), str) and "note" not in capsys.readouterr().out
    live.load(image=folders["eyes"], audio=folders["odd"])
    assert "questions in different forms; a mixed prompt has that of image" in capsys.readouterr().out


def test_live_says_what_does_not_go_together(folders, tmp_path):
    eyes, ears = folders["eyes"], folders["ears"]
    for given, says in (
        ({"image": ears}, "ears is named as image, but reads audio"),
        (
            {"image": eyes, "audio": folders["stranger"]},
            r"stranger with .*another language model: .*combined on the same one",
        ),
        ({}, "by modality"),
        ({"path": eyes, "image": eyes}, "by modality"),
    ):
        with pytest.raises(AdapterError, match=says):
            live.load(**given)
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    for file in ears.iterdir():
        (tuned / file.name).write_bytes(file.read_bytes())
    (tuned / "lora").mkdir()
    with pytest.raises(AdapterError, match=r"tuned has LoRA weights.*load it alone"):
        live.load(image=eyes, audio=tuned)
    both = live.load(image=eyes, audio=ears)
    with pytest.raises(AdapterError, match=r"clip.avi is video, and the adapters read image and audio"):
        both.ask("clip.avi", "what?")
    with pytest.raises(AdapterError, match=r"a medium of type bytes is of no known modality.*say which"):
        both.ask(b"RIFF", "what?")
    with pytest.raises(AdapterError, match="mark <audio>, and the media given are all image"):
        both.ask(folders["picture"], "the <audio>")


def test_eval_looks_with_several_adapters(folders, monkeypatch, capsys):
    from periscope import eval as eval_script
    from periscope.console import run

    def said(*arguments, lines=""):
        monkeypatch.setattr("sys.argv", ["eval.py", *map(str, arguments), "--device", "cpu", "--max-new-tokens", "6"])
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        try:
            run(eval_script.main)
        except SystemExit as left:
            return str(left.code)
        return capsys.readouterr().out

    together = ("--run", f"image={folders['eyes']}", f"audio={folders['ears']}")
    media = ("--image", folders["picture"], "--audio", folders["sound"])
    both = live.load(image=folders["eyes"], audio=folders["ears"])
    question = "<audio> How many <image> objects?"
    want = both.ask([folders["picture"], folders["sound"]], question, 6)
    assert said(*together, *media, "--prompt", question).strip() == want
    talk = said(*together, *media, lines=f"{question}\n/image\nWhat is it?\n/audio no.wav\n\n/quit\n")
    assert want in talk and both.ask(folders["sound"], "What is it?", 6) in talk
    assert both.caption(folders["sound"], 6) in talk
    plain = ("--run", folders["eyes"], "--image", folders["picture"], folders["other picture"], "--prompt", "x")
    assert said(*plain).strip() == both.ask([folders["picture"], folders["other picture"]], "x", 6)
    for arguments, says in (
        ((*together, "--prompt", "x"), "--image"),
        (together, "--image, --audio or --video"),
        (
            ("--run", folders["eyes"], "--audio", folders["sound"], "--prompt", "x"),
            "given as audio, and the adapter reads",
        ),
        (("--run", folders["eyes"], folders["ears"], *media), "one for each modality"),
        (("--run", f"image={folders['eyes']}", f"image={folders['eyes']}", *media[:2]), "one for each modality"),
    ):
        assert says in said(*arguments), arguments


def test_a_picture_and_a_sound_in_one_prompt_are_both_understood():
    """With ideal adapters, whose tokens are the words of a description: what the prompt's form leaves to be learnt."""
    lm = load_language_model("demo/backbones/lm")
    prompts = {
        "image": Prompt(lm.tokenizer, Template(delimiters=("Scene:", "\n")), "image"),
        "audio": Prompt(lm.tokenizer, Template(delimiters=("Sound:", "\n")), "audio"),
    }
    prompt, rng = ComposedPrompt(prompts), random.Random(5)
    model = AdaptedModel(lm, Adapter("linear1", FeatureShape("pooled", 1, 2), lm.hidden_size, 1.0), prompts["image"])
    right = {"image": [], "audio": []}
    for number in range(40):
        told = {name: corpus.MEDIA[name].draw(rng, "train") for name in prompts}
        words = {f"{name}:0": corpus.describe(corpus.MEDIA[name], told[name], rng) for name in prompts}
        slots = {
            name: lm.embed(torch.tensor(lm.tokenizer.encode(w, add_special_tokens=False))) for name, w in words.items()
        }
        model.slots = lambda *_, slots=slots: slots
        order = sorted(slots, reverse=bool(number % 2))
        for name in prompts:
            ((_, asked, truth),) = corpus.MEDIA[name].words.draw_questions(told[name], 1, rng)
            text = prompt.segments([{"role": "user", "content": asked}], order, answer=False)
            right[name].append(model.generate([text], {}, 8)[0] == truth)
    assert sum(right["image"]) >= 34 and sum(right["audio"]) >= 34, right


def test_the_page_holds_what_was_found():
    found, page = json.loads(compose.FOUND.read_text()), compose.PAGE.read_text()
    for name in (compose.TOKENS, compose.WORDS):
        assert compose.table(found[name]) in page
        for modality in ("image", "audio"):
            part = found[name]["questions"][modality]
            assert part["own first"]["value"] > part["exchanged"]["high"] and part["alone"]["n"] == 600


def both_right(image_run, audio_run, home, pairs=20):
    """The share of held-out pairs of a picture's and a sound's files of which both are understood in one prompt."""
    eyes = live.load(image=image_run, audio=audio_run)
    asked = {}
    for modality, run, data in (("image", image_run, "seed-0"), ("audio", audio_run, "seed-0-audio")):
        features = FeatureSet(home / Run.open(run).config.features[0])
        texts = [t for t in features.texts() if t.split == "heldout" and len(t.turns) == 2]
        chosen = {t.media[0]: t for t in texts}  # one of each medium
        folder = home / "demo" / "media" / data
        asked[modality] = [(folder / features.info(key)["origin"], *t.turns) for key, t in list(chosen.items())[:pairs]]
    right = 0
    for picture, sound in zip(*asked.values(), strict=True):
        said = [eyes.ask([picture[0], sound[0]], one[1]["content"]) for one in (picture, sound)]
        right += said == [one[2]["content"] for one in (picture, sound)]
    return right / pairs


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demos_adapters_understand_a_picture_and_a_sound_in_one_prompt(tmp_path, monkeypatch):
    """Trained apart, on captions alone, for a few minutes each: most pairs of questions have both answers right."""
    monkeypatch.chdir(tmp_path)
    for words in (
        ("precompute.py",),
        ("precompute.py", "--demo", "audio"),
        ("train.py", "--adapter", "mlp16", "--features", "features/demo", "--name", "eyes", "--steps", "1100"),
        ("train.py", "--adapter", "mlp16", "--features", "features/demo-audio", "--name", "ears"),
    ):
        subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:], "--device", "cpu"], check=True)
    assert both_right(tmp_path / "runs" / "eyes", tmp_path / "runs" / "ears", tmp_path) >= 0.6
