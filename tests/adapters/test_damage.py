"""A damaged language model folder gets one sentence that names the file, whatever is wrong with it."""

import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file

from periscope.adapters.lm.load import load_language_model
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template
from periscope.errors import AdapterError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060280\n"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
         "chat_template.jinja")  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return tiny.save_language_model("smollm", tmp_path_factory.mktemp("sound"))


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "lm")


def use(folder) -> None:
    """Load a model and embed a text with its prompt."""
    lm = load_language_model(str(folder))
    prompt = Prompt(lm.tokenizer, default_template(lm.tokenizer))
    for segment in prompt.segments([{"role": "assistant", "content": "a red circle"}]):
        lm.embed(torch.tensor(segment.ids))


def damaged(data: bytes) -> dict[str, bytes]:
    """A file's bytes: cut, and with bits flipped in every eighth."""
    cases = {"empty": b"", "pointer": POINTER}
    cases |= {f"cut at {size}": data[:size] for size in (1, len(data) // 4, len(data) // 2, len(data) - 1)}
    for k in (0, 3, 9, *((2 * i + 1) * len(data) // 16 for i in range(8))):
        for mask in (0x15, 0xFF):
            cases[f"byte {k} ^ {mask}"] = data[:k] + bytes([data[k] ^ mask]) + data[k + 1 :]
    return cases


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_never_a_traceback(folder, name):
    refused = 0
    data = (folder / name).read_bytes()
    for case in (None, *damaged(data).values()):
        if case is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(case)
        try:
            use(folder)
        except AdapterError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 700
    assert refused or name == "generation_config.json", "transformers goes on without that one"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", POINTER, r"model\.safetensors is a Git LFS pointer.*git lfs pull"),
        ("tokenizer.json", POINTER, r"tokenizer\.json is a Git LFS pointer"),
        ("model.safetensors", b"", r"model\.safetensors is empty; download it again"),
        ("tokenizer.json", b'{"model": ', r"tokenizer\.json is cut or damaged.*download it again"),
        ("tokenizer_config.json", b"[]", r"tokenizer_config\.json is damaged: it holds no JSON object"),
        ("config.json", b'{"model_type": ', r"config\.json is cut or damaged"),
        ("model.safetensors", None, "holds no weights"),
        ("tokenizer.json", None, r"holds no tokenizer \(no tokenizer\.json.*copy these files"),
    ],
)
def test_the_sentence_names_the_file_and_the_remedy(folder, name, content, words):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(AdapterError, match=words):
        load_language_model(str(folder))


def test_a_cut_file_a_missing_shard_and_another_size_are_named(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(AdapterError, match=r"model\.safetensors is cut or damaged \(.*\); download it again"):
        load_language_model(str(folder))
    (folder / "model.safetensors").unlink()
    listed = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    with pytest.raises(AdapterError, match=r"lacks model-00001-of-00002\.safetensors, which model\.safetensors\.index"):
        load_language_model(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(AdapterError, match=r"its weights have other sizes than config\.json says"):
        load_language_model(str(folder))


def test_cut_pytorch_weights_are_named(folder):
    torch.save(load_file(folder / "model.safetensors"), weights := folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(AdapterError, match=r"pytorch_model\.bin is cut or damaged \(.*\); download it again"):
        load_language_model(str(folder))


def test_a_special_token_beyond_the_embeddings_is_refused(folder):
    tokenizer = load_language_model(str(folder)).tokenizer
    tokenizer.add_tokens(["<|far|>"], special_tokens=True)
    words = r"knows '<\|far\|>' as id \d+, and the model embeds ids below \d+; copy"
    tokenizer.pad_token = "<|far|>"
    tokenizer.save_pretrained(folder)
    use(folder)  # nothing prints it
    tokenizer.chat_template, template = tokenizer.chat_template + "<|far|>", tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    with pytest.raises(AdapterError, match=words):
        load_language_model(str(folder))
    tokenizer.chat_template, tokenizer.eos_token = template, "<|far|>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(AdapterError, match=words):
        load_language_model(str(folder))


def test_pytorch_weights_are_read_without_running_what_is_in_them(folder, sound, tmp_path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    lm = load_language_model(str(folder))
    assert "weights from pytorch_model.bin" in lm.note
    there = load_language_model(str(sound))
    assert "pytorch_model" not in there.note
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), there.model.parameters(), strict=True))
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self):
            return (marker.write_text, ("this code ran",))

    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(AdapterError, match="can't be loaded"):
        load_language_model(str(folder))
    assert not marker.exists()


def test_an_adapter_named_as_a_language_model_is_told_apart(folder):
    """As it is in a run, and as it is shared, with a config.json that only counts downloads."""
    for name, text in (("adapter.json", "{}"), ("config.json", '{"library_name": "periscope", "adapter": "mlp2"}')):
        (folder / "config.json").unlink(missing_ok=True)
        (folder / name).write_text(text)
        with pytest.raises(AdapterError, match="that is an adapter, not a language model; name the one it belongs to"):
            load_language_model(str(folder))
        (folder / name).unlink()


@pytest.mark.parametrize("name", ["a b/c", "a--b/c", "-a/b", "a/..b", "hf://a/b", "a/b/c"])
def test_what_is_no_name_of_the_hub_is_one_sentence(name):
    with pytest.raises(AdapterError, match="is neither a folder that exists nor a hub id of the form owner/name"):
        load_language_model(name)
