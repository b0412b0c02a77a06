"""`--for` and the plan: what is said before a training is what the exports say after it."""

from dataclasses import replace

import pytest
import toy_sets
from export_models import save_patch_adapter, tower_folder

from periscope.adapters.io.schema import read_adapter_config
from periscope.adapters.lm.load import load_config
from periscope.adapters.projectors import find_projector, known_specs
from periscope.errors import PrecomputeError, RunError
from periscope.exports.check import facts_of
from periscope.exports.ways import (
    INJECTING,
    LLAMA_CPP,
    NEEDS,
    TRANSFORMERS,
    VLLM,
    WAYS,
    closed_by_adapter,
    closed_by_encoder,
    closed_by_options,
    encoder_facts,
    opened_by,
    refusal,
    ways_out,
)
from periscope.precompute.cli import main as precompute
from periscope.precompute.config import read_config
from periscope.precompute.encoders.names import ENCODERS
from periscope.precompute.encoders.registry import load_encoder
from periscope.precompute.tiny_encoders import tiny_encoder
from periscope.training.config import Request, config_from, parse_request
from periscope.training.leaving import facts_of_config, facts_of_set, lines_of
from periscope.training.resolve import resolve


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    home = tmp_path_factory.mktemp("ways")
    return read_adapter_config(save_patch_adapter(home / "adapter", home))


@pytest.fixture
def facts(config):
    return facts_of(config)


def test_for_chooses_what_precompute_leaves_open():
    config = read_config(["--for", "llama.cpp"])
    assert (config.encoder, config.kinds, config.preprocessing.resize) == ("siglip2-b", ("patches",), "llama.cpp")
    config = read_config(["--for", "transformers", "--encoder", "clip-l"])
    assert (config.encoder, config.kinds, config.preprocessing.resize) == ("clip-l", ("patches",), "encoder")
    config = read_config(["--for", "llama.cpp", "--recipe", "doubutsu-llava", "--resize", "crop"])
    assert (config.encoder, config.preprocessing.resize) == ("siglip-so400m-384", "crop")
    assert read_config(["--for", "vllm"]).encoder == "demo"


@pytest.mark.parametrize(
    ("tower", "flags", "why"),
    [
        ("open_clip", ["--for", "llama.cpp"], "--for llama.cpp can't work: class token: llama.cpp puts it last"),
        ("siglip", ["--for", "transformers", "--resize", "pad"], "resize pad: no image processor of transformers"),
        ("siglip", ["--for", "llama.cpp", "--pool", "2x2"], r"pooled patches \(--pool\)"),
        ("siglip", ["--for", "transformers", "--kinds", "pooled"], "without patches, which mlp and linear read"),
    ],
)
def test_precompute_refuses_before_it_encodes(tmp_path, tower, flags, why):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.ppm").write_bytes(b"P6 1 1 255\n\0\0\0")
    name = tower_folder(tmp_path, tower)
    with pytest.raises(PrecomputeError, match=why):
        precompute(["--data", str(tmp_path / "media"), "--encoder", name, "--out", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


def test_train_chooses_the_adapter_and_refuses_others(tmp_path, language_model_folder, facts):
    """With the reasons that an export would have."""
    place = {"library": "periscope", "resize": "llama.cpp"}
    siglip = toy_sets.ENCODER | {"library": "transformers", "class": "SiglipVisionModel", "preprocessing": place}
    toy_sets.make(tmp_path / "set", range(3), encoder=siglip)
    toy_sets.make(tmp_path / "other", range(3))
    given = {"features": [str(tmp_path / "set")], "lm": str(language_model_folder("qwen2"))}

    def resolved(target, **flags):
        return resolve(Request(given | flags, for_=target), tmp_path)

    config = resolved("llama.cpp")
    assert (config.adapter, config.projector.output_norm, config.prompt.delimiters) == ("mlp", False, ("", ""))
    config = resolved("llama.cpp", adapter="linear", delimiters=["Scene:", "\n"])
    assert (config.adapter, config.projector.output_norm, config.prompt.delimiters[0]) == ("linear", False, "Scene:")
    config = resolved("vllm")
    assert (config.adapter, config.projector.output_norm, config.prompt.delimiters) == ("mlp16", True, None)
    with pytest.raises(RunError, match=r"resize llama\.cpp: no image processor of transformers does it"):
        resolved("transformers")
    with pytest.raises(RunError, match="encoder test: only CLIP and SigLIP towers are exported"):
        resolved("llama.cpp", features=[str(tmp_path / "other")])
    unfit = {"adapter": "window2", "output_norm": True, "soft_prompt": 3}
    with pytest.raises(RunError) as refused:
        resolved("llama.cpp", **unfit)
    own = replace(facts[1], spec="window2", output_norm=True, soft_prompt=3)
    assert str(refused.value) == refusal("llama.cpp", closed_by_adapter(LLAMA_CPP, own))
    assert parse_request(["--for", "llama.cpp"]).for_ == "llama.cpp"


def test_facts_are_the_same_before_and_after_training(config, facts, tmp_path):
    """Of the options, of adapter.json, and of a feature set by the same encoder."""
    encoder, adapter = facts
    options = config_from({"adapter": "mlp", "output_norm": False}, "the test")
    assert facts_of_config(options, load_config(config.language_model.name)) == adapter
    features = toy_sets.make(tmp_path / "set", range(3), encoder=config.encoder)
    assert facts_of_set(features) == replace(encoder, kinds=("pooled", "patches"))


def test_the_plan_names_what_opens_a_way(facts):
    encoder, adapter = facts
    first = lines_of(encoder, adapter)
    assert first == ["can be exported to: transformers, llama.cpp, vLLM"]
    usual = replace(adapter, spec="mlp16", output_norm=True)
    open_line, *closed, mend = lines_of(encoder, usual)
    assert open_line == "can be exported to: vLLM" and len(closed) == 2
    norm = "output norm: train with --output-norm False"
    assert closed[0] == f"not to transformers: adapter mlp16: only mlp and linear are exported; {norm}"
    assert (
        mend
        == "to change that, give --for transformers or --for llama.cpp to both periscope precompute and periscope train"
    )
    assert opened_by(replace(encoder, tower="clip"), usual) == ["transformers"]
    assert opened_by(replace(encoder, tower="other"), usual) == []
    assert opened_by(encoder, replace(usual, soft_prompt=2)) == []
    assert lines_of(replace(encoder, tower="other", kinds=("layers",)), replace(usual, injects=True))[0] == (
        "can be exported to: no other program"
    )


def test_what_closes_nothing_refuses_nothing(facts):
    for target, name in WAYS.items():
        assert not refusal(target, [*closed_by_encoder(name, facts[0]), *closed_by_adapter(name, facts[1])])
    assert [way.name for way in ways_out(*facts)] == [TRANSFORMERS, LLAMA_CPP, VLLM]


@pytest.mark.parametrize("name", ["demo", "clip-b-32", "eva02-clip-l-336", "siglip2-b", "dinov2-b"])
def test_a_named_encoder_has_the_tower_that_is_listed(name, tmp_path):
    """Which the plan goes by before anything is downloaded."""
    encoder = load_encoder(name if name == "demo" else tiny_encoder(name, tmp_path), kinds=())
    described = encoder.describe() | {"name": name}
    assert encoder_facts(described, encoder.modality).tower == ENCODERS[name].tower


def test_what_a_command_line_says_is_refused_as_what_becomes_of_it(config, facts, tmp_path):
    """Before anything is loaded, and by the same table."""
    for target in NEEDS:
        for options in ({}, {"adapter": "window2"}, {"soft_prompt": 3}, {"adapter": "epalm"}, {"row_separator": "\n"}):
            early = closed_by_options(target, options, {})
            given = {**NEEDS[target].train, **options}
            late = facts_of_config(config_from(given, "the test"), load_config(config.language_model.name))
            assert early == closed_by_adapter(WAYS[target], late)
    lm = {"model_type": "opt", "hidden_size": 8}
    assert closed_by_options("llama.cpp", {"projector_hidden": 9}, lm) == ["opt: llama.cpp doesn't know OPT"]
    (reason,) = closed_by_options("transformers", {"projector_hidden": 9}, lm)
    assert reason == "hidden width 9: LLaVA's projector has the language model's 8"
    assert set(INJECTING) == {spec for spec in known_specs() if find_projector(spec.replace("K", "2"))[0].injects}
