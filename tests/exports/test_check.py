"""Which ways out are said to be open, and that what is said of an adapter is what happens to it."""

import sys

import pytest
from export_models import save_patch_adapter

from periscope.adapters.io.schema import AdapterConfig, read_adapter_config
from periscope.errors import AdapterError
from periscope.exports.__main__ import main
from periscope.exports.check import exit_named, exits, facts_of
from periscope.exports.gguf import export_gguf
from periscope.exports.llava import export_llava
from periscope.exports.ways import LLAMA_CPP, TRANSFORMERS, VLLM


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    home = tmp_path_factory.mktemp("check")
    return save_patch_adapter(home / "adapter", home)


@pytest.fixture
def config(adapter):
    return read_adapter_config(adapter)


def changed(config: AdapterConfig, **changes: object) -> AdapterConfig:
    """The config with other values; a table is updated, not replaced."""
    values = config.to_dict()
    for name, value in changes.items():
        merge = isinstance(value, dict) and isinstance(values[name], dict)
        values[name] = _updated(values[name], value) if merge else value
    return AdapterConfig.from_dict(values)


def _updated(old: dict, new: dict) -> dict:
    both = {key: _updated(old[key], value) if isinstance(value, dict) and isinstance(old.get(key), dict) else value
            for key, value in new.items()}  # fmt: skip
    return {**old, **both}


def test_everything_is_open_for_a_plain_adapter_on_siglip(config):
    assert [way.name for way in exits(config)] == [TRANSFORMERS, LLAMA_CPP, VLLM]
    assert all(way.open for way in exits(config))
    assert facts_of(config)[0].tower == "siglip"


CLOSED = {
    "output norm": ({"output_norm": True}, {TRANSFORMERS, LLAMA_CPP}),
    "soft prompt": ({"soft_prompt": 10}, {TRANSFORMERS, LLAMA_CPP}),
    "adapter window2": ({"adapter": "window2"}, {TRANSFORMERS, LLAMA_CPP}),
    "injection": (
        {"injection": {"layer_size": 32, "start": 1, "end": 2, "compat": False}},
        {TRANSFORMERS, LLAMA_CPP, VLLM},
    ),
    "audio": ({"modality": "audio"}, {TRANSFORMERS, LLAMA_CPP}),
    "pooled patches": ({"storage": {"shape": [4, 32], "pool": [2, 2]}}, {TRANSFORMERS, LLAMA_CPP}),
    "row separators": ({"template": {"row_separator": "\n", "rows": 4}}, {TRANSFORMERS, LLAMA_CPP}),
    "encoder dino": ({"encoder": {"name": "dino", "class": "Dinov2Model"}}, {TRANSFORMERS, LLAMA_CPP}),
    "class token": ({"encoder": {"class": "CLIPVisionModel"}}, {LLAMA_CPP}),
    "hidden width 64": ({"projector_hidden": 64}, {TRANSFORMERS}),
    "resize llama.cpp": (
        {"encoder": {"preprocessing": {"library": "periscope", "resize": "llama.cpp"}}},
        {TRANSFORMERS},
    ),
    "resize longest": (
        {"encoder": {"preprocessing": {"library": "open_clip", "resize_mode": "longest"}}},
        {TRANSFORMERS},
    ),
    "opt: llama.cpp": ({"language_model": {"identity": {"model_type": "opt"}}}, {LLAMA_CPP}),
    "gemma2": ({"language_model": {"identity": {"model_type": "gemma2"}}}, {TRANSFORMERS, LLAMA_CPP}),
}


@pytest.mark.parametrize("reason", CLOSED)
def test_each_thing_closes_what_can_not_do_it(config, reason):
    changes, closed = CLOSED[reason]
    ways = {way.name: way for way in exits(changed(config, **changes))}
    assert {name for name, way in ways.items() if not way.open} == closed
    assert all(any(reason in words for words in ways[name].reasons) for name in closed)


def test_notes_tell_what_differs_where_a_way_is_open(config):
    config = changed(config, lora={"r": 4, "alpha": 8}, template={"media": "after"})
    llama_cpp = exit_named(config, LLAMA_CPP)
    assert llama_cpp.open and "merge the LoRA" in str(llama_cpp) and "stretch" in str(llama_cpp)
    assert "put the picture after the question" in str(llama_cpp)
    assert str(exit_named(config, TRANSFORMERS)).startswith("transformers: yes, LoRA is merged")


@pytest.mark.parametrize("export", [export_gguf, export_llava])
def test_exports_refuse_what_is_closed_and_what_exists(adapter, tmp_path, export):
    home = tmp_path / "normed"
    normed = save_patch_adapter(home / "adapter", home, output_norm=True)
    with pytest.raises(AdapterError, match="output norm: train with --output-norm False"):
        export(normed, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(AdapterError, match="nothing is overwritten"):
        export(adapter, tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_the_command_line_says_it_in_words(adapter, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["exports", "check", str(adapter)])
    main()
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["transformers", "llama.cpp", "vLLM"]
    assert said == [str(way) for way in exits(read_adapter_config(adapter))]
