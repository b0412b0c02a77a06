"""Several feature sets in one training: the shares, the order, one projector for a modality or one for each."""

import io
import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import finish, forks, processes
from processes import train as train_with
from safetensors.torch import load_file

from periscope.adapters.composed import ComposedModel
from periscope.adapters.io.merge_lora import merge as merge_lora
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template
from periscope.errors import AdapterError, RunError
from periscope.shards.features import encode_fp16
from periscope.shards.texts import Text
from periscope.shards.write import SetWriter, make_key
from periscope.training.data.dataset import TextFeatureDataset
from periscope.training.data.mix import MixedSteps, Quotas, named_sets
from periscope.training.step import take_step


class Set:
    """Features of a few media, all with the same keys: of medium k they are `first + k` everywhere."""

    def __init__(self, first: int, width: int = 6, views: int = 1):
        self.first, self.width = first, width
        self.manifest = {"features": {"pooled": {"views": views}}}

    def __len__(self):
        return 64

    def row(self, key):
        return int(key[1:])

    def read_many(self, keys, kind, views=None):
        rows = [torch.full((self.width,), self.first + int(key[1:]) / 64) for key in keys]
        return torch.stack(rows).half() if rows else torch.empty(0, self.width).half()


WORDS = ["a red circle", "the quick brown fox", "blue", "in the top left, in the centre"]


def texts(n, alone=0):
    """Captions of media m0, m1 ... and `alone` questions without a medium."""
    about = [
        Text(f"t{i}", (f"m{i // 2}",), ({"role": "assistant", "content": WORDS[i % 4]},), "train") for i in range(n)
    ]
    turns = ({"role": "user", "content": "What colour?"}, {"role": "assistant", "content": "blue"})
    return about + [Text(f"alone{i}", (), turns, "train") for i in range(alone)]


def part(lm, width=6, modality="image", soft=0):
    torch.manual_seed(width)
    adapter = Adapter("mlp2", FeatureShape("pooled", 1, width), lm.hidden_size, lm.embedding_rms, soft)
    template = Template(delimiters=(f"<{modality}>", "|"))
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, template, modality), token_noise=0.1)


@pytest.fixture(scope="module")
def lm(language_model_folder):
    return load_language_model(str(language_model_folder("llama")))


def mixed(model, sets, sizes, weights=None, batch=8, seed=0, **how):
    """A mix of sets of one modality."""
    encoded = [TextFeatureDataset(s, model.prompt, model.adapter, f"{i}/") for i, s in enumerate(sets)]
    return MixedSteps(
        [(one, one.keep(texts(n), 256)) for one, n in zip(encoded, sizes, strict=True)], weights, batch, seed, **how
    )


def test_quotas_keep_to_the_weights_after_every_step():
    for weights, batch in (((0.7, 0.3), 10), ((1, 1, 1), 32), ((0.01, 0.5, 0.49), 7), ((5,), 3)):
        quotas, total = Quotas([w / sum(weights) for w in weights], batch), sum(weights)
        counts = [quotas.before(step) for step in range(200)]
        for step, found in enumerate(counts):
            assert sum(found) == step * batch
            assert all(abs(n - w / total * step * batch) < len(weights) for n, w in zip(found, weights, strict=True))
        assert all(a <= b for one, two in pairwise(counts) for a, b in zip(one, two, strict=True))
        assert [quotas.before(step) for step in (150, 3, 150)] == [counts[150], counts[3], counts[150]]
    assert Quotas([0.7, 0.3], 10).before(30) == [210, 90]


def test_a_mix_goes_through_each_set_at_its_own_pace(lm):
    mix = mixed(part(lm), [Set(0), Set(100)], [40, 16], [0.5, 0.5])
    assert mix.per_epoch == 7  # 56 texts by 8
    seen = [Counter(), Counter()]
    for step in range(20):
        batch = mix[step]
        numbers = [int(s.slot.split("/")[0]) for text in batch.texts for s in text if s.slot]
        assert Counter(numbers) == {0: 4, 1: 4} and len(batch) == 8 and batch.count() == batch.targets
        for text in batch.texts:
            (slot,) = (s.slot for s in text if s.slot)
            seen[int(slot[0])][slot] += 1
        rows = batch.features
        assert all(row[0] == int(key[0]) * 100 + int(key[3:]) / 64 for key, row in rows.items())
    assert set(seen[0].values()) == {4} and len(seen[0]) == 20  # 80 of 40 texts: two of each medium's, twice
    assert set(seen[1].values()) == {10} and len(seen[1]) == 8
    by_size = mixed(part(lm), [Set(0), Set(100)], [40, 16])
    assert by_size.shares == [40 / 56, 16 / 56]
    whole = Counter(s.slot for step in range(7) for text in by_size[step].texts for s in text if s.slot)
    assert set(whole.values()) == {2} and len(whole) == 28  # by size, an epoch shows every text once


def test_a_step_of_a_mix_is_the_same_whatever_was_asked_before(lm):
    def said(batch):
        return batch.texts, batch.keys, torch.cat(batch.rows).tolist(), batch.whole, batch.draw

    sets = [Set(0), Set(100)]
    mix = mixed(part(lm), sets, [30, 50], [0.3, 0.7])
    forward = [said(mix[step]) for step in range(25)]
    for step in (24, 3, 11, 0):
        assert said(mix[step]) == forward[step] == said(mixed(part(lm), sets, [30, 50], [0.3, 0.7])[step])
    assert said(mixed(part(lm), sets, [30, 50], [0.3, 0.7], seed=1)[3]) != forward[3]
    assert said(mixed(part(lm), sets, [30, 50], [0.4, 0.6])[3]) != forward[3]
    for step in (0, 9):
        shares = [mix.share(step, rank, 3) for rank in range(3)]
        assert [text for share in shares for text in share.texts] == forward[step][0]
        assert all(share.whole == forward[step][3] and share.draw == forward[step][4] for share in shares)
        assert sum(share.targets for share in shares) == forward[step][3][1]


class Views(Set):
    """Each view of a medium is another number."""

    def read_many(self, keys, kind, views=None):
        return super().read_many(keys, kind) + torch.tensor(views or [0] * len(keys))[:, None]


def test_a_medium_has_one_view_in_a_step_whoever_reads_it(lm):
    """Also where a small set comes around several times in a step."""
    mix, seen = mixed(part(lm), [Views(0, views=5), Set(100)], [4, 30], [0.6, 0.4], batch=16), set()
    for step in range(12):
        whole = mix[step].features
        assert sum(len(mix.share(step, rank, 3)) for rank in range(3)) == 16
        for rank in range(3):
            assert all(torch.equal(row, whole[key]) for key, row in mix.share(step, rank, 3).features.items())
        seen.add(int(whole["0/m0"][0]))
    assert len(seen) > 2


def test_two_modalities_are_trained_at_once_each_by_its_own_texts(lm):
    """The gradient of each projector in a mixed step is that of its own texts, over the whole step's tokens."""
    parts = {"image": part(lm, 6, "image", soft=2), "audio": part(lm, 5, "audio")}
    model = ComposedModel(parts)
    sets = {"image": Set(0, 6), "audio": Set(1, 5)}
    encoded = {
        m: TextFeatureDataset(sets[m], one.prompt, one.adapter, f"{i}/", m) for i, (m, one) in enumerate(parts.items())
    }
    kept = [(encoded["image"], encoded["image"].keep(texts(20, alone=4), 256)),
            (encoded["audio"], encoded["audio"].keep(texts(12), 256))]  # fmt: skip
    batch = MixedSteps(kept, [1, 1], 16, 0)[1]
    optimizer = torch.optim.SGD(model.trained().values(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for micro in (16, 3):
        loss, _, _ = take_step(model, optimizer, scaler, batch, micro, clip=0)
        grads = {name: p.grad.clone() for name, p in model.trained().items()}
        total = 0.0
        for modality, alone in parts.items():
            own = [text for text in batch.texts if any((s.slot or "").startswith(modality) for s in text)]
            given = {key: row for key, row in batch.features.items() if key.startswith(modality)}
            summed, count = ComposedModel({modality: alone}).loss(own, given, batch.draw)
            (want,) = (torch.autograd.grad(summed / batch.targets, list(alone.adapter.parameters())),)
            total += summed.item() / batch.targets
            for (name, _), grad in zip(alone.adapter.named_parameters(), want, strict=True):
                torch.testing.assert_close(grads[f"{modality}.{name}"], grad, rtol=1e-4, atol=1e-6)
            assert count < batch.targets and all(grad.abs().sum() > 0 for grad in want)
        assert loss == pytest.approx(total, abs=1e-5)


def test_features_are_named_with_weights_or_without():
    assert named_sets("features/a") == {"features/a": None} == named_sets(["features/a"])
    assert named_sets(["a=0.7", "b=3"]) == {"a": 0.7, "b": 3.0} and named_sets(["a", "x=y"]) == {"a": None, "x=y": None}
    for given, says in (
        (["a=0.7", "b"], "every set a weight"),
        (["a=0", "b=1"], "above 0"),
        (["a=nan", "b=1"], "above 0"),
        (["a=1", "a=2"], "a twice"),
    ):
        with pytest.raises(RunError, match=says):
            named_sets(given)


def feature_set(folder, modality, width, fingerprint, count=24, first=0, kind="pooled"):
    """A feature set on the disk: captions of `count` media, half of them with a question too, and as many held out as
    fall so; and a few texts without a medium.
    """
    shape = {"pooled": [width], "patches": [4, width]}[kind]
    described = {"name": f"{modality}-{fingerprint}", "fingerprint": fingerprint * 64}
    with SetWriter(folder, modality, described, {kind: {"shape": shape, "dtype": "float16"}}) as writer:
        with writer.shard() as shard:
            for number in range(first, first + count):
                generator = torch.Generator().manual_seed(number)
                tensor = encode_fp16(torch.randn(*shape, generator=generator))
                origin = f"{number}.{modality}"
                info = {"modality": modality, "origin": origin, "sha256": f"{number:064x}"}
                shard.add(make_key(origin), {kind: tensor}, info)
        hashes = {sample.key: sample.sha256 for sample in writer.samples()}
        rows = []
        for i, key in enumerate(hashes):
            turns = [{"role": "assistant", "content": WORDS[i % 4]}]
            split = "heldout" if i % 6 == 5 else "train"
            row = {"id": key, "media": [key], "turns": turns, "split": split, "meta": {}}
            rows += [row, row | {"id": f"{key}-q", "turns": [{"role": "user", "content": "What is it?"}, *turns]}]
        talk = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "the lazy dog"}]
        rows += [{"id": f"talk{i}", "media": [], "turns": talk * 2, "split": "train", "meta": {}} for i in range(3)]
        held = {row["media"][0] for row in rows if row["split"] == "heldout"}
        jpeg = io.BytesIO()
        Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
        writer.finish(rows, held, lambda keys: ((key, jpeg.getvalue()) for key in keys), [])


@pytest.fixture(scope="module")
def home(tmp_path_factory, language_model_folder):
    home = tmp_path_factory.mktemp("mixes")
    feature_set(home / "a", "image", 6, "1")
    feature_set(home / "b", "image", 6, "1", count=12, first=100)
    feature_set(home / "c", "image", 6, "2")
    feature_set(home / "wide", "image", 7, "1")
    feature_set(home / "sounds", "audio", 5, "3", count=16)
    feature_set(home / "rows", "audio", 5, "4", kind="patches")
    (home / "lm").symlink_to(language_model_folder("llama"))
    return home


@pytest.fixture
def train(home, monkeypatch):
    """train.py in this process, on one thread."""
    from periscope import console
    from periscope import train as script

    def run(*arguments, fails=""):
        monkeypatch.chdir(home)
        words = [*map(str, arguments), *(() if "--resume" in arguments else ("--lm", "lm"))]
        monkeypatch.setattr(sys, "argv", ["train.py", *words, "--device", "cpu"])
        if not fails:
            return script.main()
        with pytest.raises(SystemExit) as left:
            console.run(script.main)
        assert fails in str(left.value.code)

    return run


def weights_of(run, adapter="adapter"):
    return load_file(run / "steps" / (run / "last").read_text().strip() / adapter / "adapter.safetensors")


def metrics_of(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: row[name] for name in ("step", "loss", "heldout", "sets") if name in row} for row in rows]


LENGTH = ("--steps", "12", "--batch", "8", "--eval-every", "4", "--save-every", "3", "--token-noise", "0.2")
OPTIONS = ("--adapter", "mlp2", "--soft-prompt", "2", *LENGTH)
BOTH = ("a=1", "sounds=2", "b=1")


@pytest.fixture
def both_run(home, train, monkeypatch):
    """A run on pictures and sounds, in the current folder."""
    monkeypatch.chdir(home)
    run = home / "runs" / "adapter-audio-adapter-image-whole"
    if not run.exists():
        train("--features", *BOTH, *OPTIONS, "--name", run.name)
    return run


@pytest.mark.parametrize(
    ("features", "folders"), [(("a=0.7", "b=0.3"), ["adapter"]), (BOTH, ["adapter-audio", "adapter-image"])]
)
def test_a_mixed_run_that_was_stopped_ends_in_the_same_bits(features, folders, home, train, monkeypatch):
    from periscope.training import step as training_step

    name = "-".join(folders)
    if not (home / "runs" / f"{name}-whole").exists():
        train("--features", *features, *OPTIONS, "--name", f"{name}-whole")
    whole, taken = training_step.take_step, []

    def stops(*arguments):
        if len(taken) == 7:
            raise RunError("pulled the plug")
        taken.append(0)
        return whole(*arguments)

    monkeypatch.setattr(training_step, "take_step", stops)
    train("--features", *features, *OPTIONS, "--name", f"{name}-cut", fails="pulled the plug")
    monkeypatch.setattr(training_step, "take_step", whole)
    train("--resume", f"runs/{name}-cut")
    runs = [home / "runs" / f"{name}-{end}" for end in ("whole", "cut")]
    assert sorted(path.name for path in (runs[0] / "steps" / "000012").glob("adapter*")) == folders
    for folder in folders:
        one, two = (weights_of(run, folder) for run in runs)
        assert all(torch.equal(one[key], two[key]) for key in one) and one.keys() == two.keys()
    assert metrics_of(runs[0]) == metrics_of(runs[1])
    looks = [row["sets"] for row in metrics_of(runs[0]) if "sets" in row]
    assert len(looks) == 3 and sum(one["texts"] for one in looks[-1].values()) == 96
    assert all({"real", "shuffled", "none"} <= set(one["heldout"]) for look in looks for one in look.values())
    assert (runs[0] / "samples.md").read_text().count("image") >= 6
    train("--resume", f"runs/{name}-cut", "--features", "b", fails="was started with features")


@forks
def test_two_ranks_share_a_mixed_step(home, both_run):
    options = (*OPTIONS, "--lm", "lm", "--device", "cpu", "--name", "ranks")
    assert finish(processes(lambda rank: train_with("--features", *BOTH, *options))) == [0, 0]
    one, two = (metrics_of(run) for run in (both_run, home / "runs" / "ranks"))
    assert [row["loss"] for row in one if "loss" in row] == pytest.approx([row["loss"] for row in two if "loss" in row])
    for folder in ("adapter-image", "adapter-audio"):
        for name, value in weights_of(both_run, folder).items():
            torch.testing.assert_close(weights_of(home / "runs" / "ranks", folder)[name], value, rtol=0, atol=2e-5)


def test_two_adapters_of_one_run_load_each_alone_and_together(home, train, both_run):
    from periscope import inference as live

    run = both_run
    folders = live.adapter_folders(run)
    assert sorted(folders) == ["audio", "image"]
    both = {m: live.load_adapted(run, modality=m) for m in folders}
    for modality, (model, config) in both.items():
        assert config.modality == modality and config.encoder["name"].startswith(modality)
        alone, _ = live.load_adapted(folders[modality])
        assert all(
            torch.equal(a, b) for a, b in zip(alone.adapter.parameters(), model.adapter.parameters(), strict=True)
        )
    assert both["image"][1].training["features"] == "a, b" and both["image"][1].soft_prompt == 2
    together = live.load_several(dict.fromkeys(folders, run))
    assert together["image"][0].lm is together["audio"][0].lm
    with pytest.raises(AdapterError, match="holds adapters of audio and image; name one, as audio="):
        live.load_adapted(run)
    train("--features", "a", "--init", run, fails="holds 2 adapters")
    with pytest.raises(AdapterError, match=r"holds 2 adapters; name the folder of one, such as .*/adapter-audio"):
        merge_lora(run, home / "merged")


def test_eval_scores_each_set_of_a_mix(home, both_run, monkeypatch, capsys):
    from periscope import eval as script

    run = str(both_run)
    for more, scored in (((), "a"), (("--features", "sounds"), "sounds"), (("--run", f"audio={run}"), "sounds")):
        words = [
            "eval.py",
            *(more if "--run" in more else ("--run", run, *more)),
            "--device",
            "cpu",
            "--controls",
            "none",
        ]
        monkeypatch.setattr(sys, "argv", [*words, "--max-new-tokens", "2"])
        script.main()
        result = json.loads((home / run / "eval.json").read_text())
        assert Path(result["features"]).name == scored and result["n"] > 0
    assert "a; trained on sounds, b too" in capsys.readouterr().out


def test_sets_that_do_not_mix_are_refused(train):
    plain = ("--adapter", "mlp2", "--steps", "1")
    for features, says in (
        (("a", "c"), "a was made with encoder image-1 and c with image-2"),
        (("a", "wide"), "hold pooled of different shapes"),
        (("a=0.5", "b"), "every set a weight"),
        (("a", "rows"), "rows holds patches, not pooled"),
        (("a", "nowhere"), "nowhere"),
    ):
        train("--features", *features, *plain, fails=says)
    train("--features", "a", "b", "--text", "a/texts.jsonl", *plain, fails="--text goes with one")
    train("--features", "a", "sounds", "--lora", "r=2", *plain, fails="--lora goes with one adapter")


def test_a_recipe_says_what_is_one_modalitys_own(home, train):
    (home / "own.toml").write_text(
        '[train]\nadapter = "mlp2"\nsteps = 1\nbatch = 8\n[modality.audio]\nadapter = "linear"\n'
        'delimiters = ["{", "}"]\nsoft_prompt = 3\n'
    )
    train("--recipe", "own.toml", "--features", "a=1", "rows=1", "--name", "own")
    run = home / "runs" / "own" / "steps" / "000001"
    sound, picture = (json.loads((run / f"adapter-{m}" / "adapter.json").read_text()) for m in ("audio", "image"))
    assert (sound["adapter"], sound["soft_prompt"], sound["template"]["delimiters"]) == ("linear", 3, ["{", "}"])
    assert (picture["adapter"], picture["soft_prompt"]) == ("mlp2", 0) and picture["template"]["delimiters"] != [
        "{",
        "}",
    ]
    assert "audio.soft_prompt = 3" in (home / "runs" / "own" / "config.toml").read_text()
    train("--recipe", "own.toml", "--features", "a=1", "rows=1", "--soft-prompt", "1", "--name", "flag")
    told = json.loads((home / "runs/flag/steps/000001/adapter-audio/adapter.json").read_text())
    assert told["soft_prompt"] == 1
    (home / "bad.toml").write_text('[train]\nadapter = "mlp2"\n[modality.audio]\nlr = 3\n')
    train("--recipe", "bad.toml", "--features", "a", fails="sets lr for audio")


def test_llavas_conversations_are_mixed_with_captions_from_file_to_step(photo_home, monkeypatch, capsys):
    """Turns, marks, several pictures and words alone: what its JSON says is what the language model is given."""
    from periscope.precompute.cli import main as encode
    from periscope.shards.read import FeatureSet

    monkeypatch.chdir(photo_home)
    folder, rows = photo_home / "llava", []
    (folder / "images").mkdir(parents=True)
    for i in range(20):
        Image.effect_noise((40, 40), 10 + i).convert("RGB").save(folder / "images" / f"{i}.png")
        talk = [
            ("human", "<image>\nWhat colour is the star?"),
            ("gpt", "blue"),
            ("human", "and the dog"),
            ("gpt", "lazy"),
        ]
        if i % 4 == 3:
            talk = [("human", "the <image> fox or <image>"), ("gpt", "the quick brown fox")]
        pictures = [f"images/{i}.png", f"images/{i - 1}.png"] if i % 4 == 3 else f"images/{i}.png"
        rows.append(
            {"id": f"{i}", "image": pictures, "conversations": [{"from": who, "value": said} for who, said in talk]}
        )
    words = [{"from": "human", "value": "the lazy dog"}, {"from": "gpt", "value": "jumps over"}]
    rows += [{"id": f"words{i}", "conversations": words} for i in range(4)]
    (folder / "llava.json").write_text(json.dumps(rows))
    encode(args=["--data", "llava", "--encoder", "clip", "--out", "features/llava", "--device", "cpu"])

    lm = load_language_model(str(photo_home / "lm"))
    sets = [FeatureSet(photo_home / "features" / name) for name in ("photos", "llava")]
    width = sets[0].manifest["features"]["pooled"]["shape"][0]
    model = part(lm, width, soft=2)
    encoded = [TextFeatureDataset(one, model.prompt, model.adapter, f"{i}/") for i, one in enumerate(sets)]
    kept = [one.keep([t for t in one.features.texts() if t.split == "train"], 256) for one in encoded]
    assert not kept[1].dropped and sum(not text.media for text in kept[1].texts) == 4
    told = {text.id: encoded[1].segments(text) for text in kept[1].texts}
    asked = next(text for text in kept[1].texts if len(text.turns) == 4)
    said = [lm.tokenizer.decode(s.ids).strip() for s in told[asked.id] if s.target]
    assert [answer.removesuffix("</s>").strip() for answer in said] == ["blue", "lazy"]
    both = next(text for text in kept[1].texts if len(text.media) == 2)
    assert [s.slot for s in told[both.id] if s.slot and s.slot[0] == "1"] == [f"1/{key}" for key in both.media]
    everything = "".join(lm.tokenizer.decode(s.ids) for text in told.values() for s in text)
    assert "jumps over" in everything and "<image>\n" not in everything

    arguments = ("--features", "features/photos=1", "features/llava=3", "--lm", "lm", "--adapter", "mlp2")
    length = ("--soft-prompt", "2", "--steps", "6", "--batch", "8", "--name", "llava-mix", "--device", "cpu")
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *length])
    from periscope import train as script

    script.main()
    assert "mix: features/photos 0.250, features/llava 0.750" in capsys.readouterr().out
    (look,) = (row["sets"] for row in metrics_of(photo_home / "runs" / "llava-mix") if "sets" in row)
    assert [one["texts"] for one in look.values()] == [12, 36]
