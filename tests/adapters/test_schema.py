"""An adapter folder from a stranger: whatever its files say, it is taken or refused with a sentence."""

import json
import math
import re
import shutil
import typing
from dataclasses import is_dataclass, replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import save_tiny_adapter

from periscope import inference as live
from periscope.adapters.io.checkpoint import load_adapter
from periscope.adapters.io.schema import (
    ADDED_FIELDS,
    ADDED_TEMPLATE_FIELDS,
    AdapterConfig,
    _EncoderFacts,
    _StorageFacts,
)
from periscope.adapters.lm.identity import same_language_model
from periscope.adapters.lm.load import load_language_model
from periscope.errors import AdapterError, PrecomputeError, RunError
from periscope.precompute.encoders import load_encoder, load_encoder_like

LONG = "mlp" + "9" * 5000
# What stands where the adapter of these tests has null.
WHOLE = {
    "injection": {"layer_size": 1, "start": 0, "end": 1, "compat": False},
    "lora": {"r": 1, "alpha": 1},
    "layer": {"patches": -2, "layers": 6},
}


def field_paths(kind: type, prefix: str = "") -> list[str]:
    """The dotted names of a dataclass's fields, and of those of dataclasses in it."""
    paths = []
    for name, hint in typing.get_type_hints(kind).items():
        inner = next((option for option in (hint, *typing.get_args(hint)) if is_dataclass(option)), None)
        paths += [f"{prefix}{name}", *(field_paths(inner, f"{prefix}{name}.") if inner else [])]
    return paths


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An adapter folder `whole`, its models in folders of their own, and a picture."""
    home = tmp_path_factory.mktemp("strangers")
    save_tiny_adapter(home / "whole", home, {"features": "photos"}, soft_prompt=2)
    Image.new("RGB", (40, 30), "blue").save(home / "cat.png")
    return home


def changed(home, folder, path: str, value: object = None, without: bool = False):
    """A copy of the adapter whose adapter.json says something else at a dotted path, or nothing there."""
    shutil.copytree(home / "whole", folder)
    config = json.loads((folder / "adapter.json").read_text())
    *above, last = path.split(".")
    part = config
    for name in above:
        part = part[name]
    if without:
        del part[last]
    else:
        part[last] = value
    (folder / "adapter.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("adapter", LONG), ("adapter", ["mlp2"]), ("projector_layers", 10**9), ("embedding_rms", math.nan),
        ("hidden_size", 10**19), ("features.grid", [2, 2, 2]), ("modality", "../../etc"), ("encoder", None),
        ("encoder.id", LONG), ("encoder.layer.patches", "-2"), ("encoder.choices", []), ("storage", {}),
        ("storage.codec", "evil"), ("language_model.name", {"a": 1}), ("language_model.name", "x" * 300),
        ("language_model.identity", []), ("language_model.identity.embedding_sample", [1, "a"]),
        ("language_model.identity.embedding_sample", [math.nan] * 16), ("template.delimiters", ["<image>"]),
        ("template.question", "{0.__class__}"), ("template.question", "{}{}"), ("template.caption_prompt", None),
        ("template.rows", 10**9), ("template.style", "evil"),
    ],
)  # fmt: skip
def test_what_a_description_cant_say_is_refused_in_a_sentence(home, tmp_path, path, value):
    with pytest.raises((AdapterError, PrecomputeError)) as refused:
        live.load(changed(home, tmp_path / "a", path, value))
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "path", ["adapter", "features", "encoder", "encoder.id", "encoder.fingerprint", "storage.shape", "language_model",
             "language_model.identity", "language_model.identity.embedding_sample", "template.delimiters"]
)  # fmt: skip
def test_what_a_description_lacks_is_said(home, tmp_path, path):
    with pytest.raises((AdapterError, PrecomputeError)):
        live.load(changed(home, tmp_path / "a", path, without=True))


def test_a_whole_description_passes_and_each_field_is_checked(home):
    text = (home / "whole" / "adapter.json").read_text()
    assert (
        AdapterConfig.from_dict(json.loads(text)) and live.load(home / "whole").caption(home / "cat.png", 4) is not None
    )
    paths = [
        *field_paths(AdapterConfig),
        *field_paths(_EncoderFacts, "encoder."),
        *field_paths(_StorageFacts, "storage."),
    ]
    assert len(paths) > 55 and "encoder.layer.patches" in paths and "language_model.identity.weight_sample" in paths
    for path in paths:
        broken = json.loads(text)
        above = broken
        *names, last = path.split(".")
        for name in names:
            above[name] = above.get(name) or dict(WHOLE.get(name, {}))
            above = above[name]
        above[last] = object()
        with pytest.raises(AdapterError, match=rf"^{re.escape(path)} can't be <object"):
            AdapterConfig.from_dict(broken)


def test_what_is_written_is_what_was_read(home, tmp_path):
    text = (home / "whole" / "adapter.json").read_text()
    AdapterConfig.from_dict(json.loads(text)).write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == text


def test_an_adapter_of_the_first_version_is_migrated(home):
    values = json.loads((home / "whole" / "adapter.json").read_text())
    whole = AdapterConfig.from_dict(values)
    for name in ADDED_FIELDS.keys() - {"storage"}:
        del values[name]
    for name in ADDED_TEMPLATE_FIELDS.keys() - {"date"}:  # written only for a template that prints it
        del values["template"][name]
    for name in ("weight_sample", "precision"):
        del values["language_model"]["identity"][name]
    old = AdapterConfig.from_dict(values)
    identity = replace(whole.language_model.identity, weight_sample={}, precision=None)
    template = replace(whole.template, requests="question", marks="all", as_string=False)
    assert old == replace(whole, template=template, language_model=replace(whole.language_model, identity=identity))
    assert same_language_model(old.language_model.identity, whole.language_model.identity) is None
    for name in ("style", "delimiters", "caption_prompt", "question"):
        broken = values | {"template": {key: value for key, value in values["template"].items() if key != name}}
        with pytest.raises(AdapterError, match=f"template.{name} is missing"):
            AdapterConfig.from_dict(broken)
    with pytest.raises(AdapterError, match="template can't have a field 'tone'; a newer version"):
        AdapterConfig.from_dict(values | {"template": values["template"] | {"tone": "dry"}})


def test_files_that_no_adapter_has_are_refused(home, tmp_path):
    for name, text, said in (
        ("deep", "[" * 100_000, "can't be read"),
        ("huge", " " * (5 << 20), "5,242,880 bytes"),
        ("list", "[]", "format None"),
    ):
        shutil.copytree(home / "whole", tmp_path / name)
        (tmp_path / name / "adapter.json").write_text(text)
        with pytest.raises(AdapterError, match=said):
            load_adapter(tmp_path / name)
    tensors = load_file(home / "whole" / "adapter.safetensors")
    first = next(iter(tensors))
    for name, value, said in (
        ("nan", torch.full_like(tensors[first], torch.nan), "aren't finite"),
        ("shape", torch.zeros(3), "doesn't hold this adapter's weights"),
    ):
        shutil.copytree(home / "whole", tmp_path / name)
        save_file(tensors | {first: value}, tmp_path / name / "adapter.safetensors")
        with pytest.raises(AdapterError, match=said):
            load_adapter(tmp_path / name)


def test_numbers_that_compare_with_nothing_are_another_model(home):
    found = load_language_model(str(home / "lm")).identity()
    assert same_language_model(found, found) is None
    for sample in ([math.nan] * 16, [], found.embedding_sample[:1]):
        assert same_language_model(replace(found, embedding_sample=sample), found) == "its weights differ"
    lacking = replace(found, tokenizer=None)
    assert same_language_model(lacking, found) == "the adapter doesn't say what its tokenizer was"


def test_an_encoder_that_has_moved_is_known_again_by_what_it_is(home, tmp_path):
    folder = changed(home, tmp_path / "a", "encoder.id", str(tmp_path / "gone"))
    with pytest.raises(PrecomputeError, match=r"encoder, .*clip, can't be loaded: .*say where: --encoder FOLDER"):
        live.load(folder)
    shutil.copytree(home / "clip", tmp_path / "other name")
    moved = live.load(folder, encoder=str(tmp_path / "other name"))
    assert moved.caption(home / "cat.png", 8) == live.load(home / "whole").caption(home / "cat.png", 8)
    assert live.load(folder, encoder={"image": str(home / "clip")})
    shutil.copytree(home / "clip", tmp_path / "another")
    weights = tmp_path / "another" / "open_clip_model.safetensors"
    save_file({name: value * 1.1 for name, value in load_file(weights).items()}, weights)
    with pytest.raises(PrecomputeError, match=r"at .*another isn't the one .*what differs: weights\)"):
        live.load(folder, encoder=str(tmp_path / "another"))
    with pytest.raises(AdapterError, match="an encoder of audio was named, and the adapters read image"):
        live.load(folder, encoder={"audio": str(home / "clip")})


def test_an_encoder_of_frames_is_named_by_the_one_that_sees_them(home, tmp_path):
    described = load_encoder(str(home / "clip"), kinds=("pooled",), frames=3).describe()
    gone = described | {"id": described["id"].replace(str(home), str(tmp_path))}
    with pytest.raises(PrecomputeError):
        load_encoder_like(gone)
    assert load_encoder_like(gone, moved=str(home / "clip")).fingerprint() == described["fingerprint"]


def test_encoders_that_moved_are_named_on_the_command_line(monkeypatch):
    from periscope.evaluation import commands
    from periscope.evaluation.config import ModelOptions

    told = []
    monkeypatch.setattr(live, "load", lambda *paths, **how: told.append((paths, how["encoder"], how.get("audio"))))
    for paths, encoder in (({None: "a"}, ()), ({None: "a"}, ("x",)), ({"image": "a", "audio": "b"}, ("audio=y",))):
        commands.load_models(paths, ModelOptions(encoder=encoder), "cpu")
    assert told == [(("a",), {}, None), (("a",), "x", None), ((), {"audio": "y"}, "b")]
    with pytest.raises(RunError, match="--encoder x y: name one, or one for each modality"):
        commands.load_models({None: "a"}, ModelOptions(encoder=("x", "y")), "cpu")
