"""A language model in GGUF computes what the same weights in safetensors do."""

import shutil
import sys
from pathlib import Path

import pytest
import tiny
import torch
from gguf_models import REAL, write_gguf

from periscope.adapters.lm.files.find import find_model
from periscope.adapters.lm.files.gguf_file import GgufFile, gguf_arguments
from periscope.adapters.lm.identity import same_language_model, weights_sha256
from periscope.adapters.lm.load import load_config, load_language_model
from periscope.adapters.lm.lora import add_lora, remove_lora
from periscope.errors import AdapterError


@pytest.mark.parametrize("lacks", [(), ("symlink_to",), ("symlink_to", "hardlink_to")])
def test_a_file_is_shown_alone_whatever_links_the_system_allows(tmp_path, monkeypatch, lacks):
    def refuse(*_):
        raise OSError("a required privilege is not held by the client")

    for name in lacks:  # as on Windows
        monkeypatch.setattr(Path, name, refuse)
    (model := tmp_path / "model.Q8_0.gguf").write_bytes(b"weights")
    with gguf_arguments(GgufFile((model,), "Q8_0", None)) as shown:
        folder = Path(shown["pretrained_model_name_or_path"])
        assert [path.read_bytes() for path in folder.iterdir()] == [b"weights"]
    assert model.read_bytes() == b"weights"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_language_model("smollm", tmp_path_factory.mktemp("smollm"))


@torch.no_grad()
def logits(lm, words="the quick brown fox"):
    return lm.model(input_ids=torch.tensor([lm.tokenizer(words).input_ids])).logits.float()


@pytest.mark.parametrize("parts", [1, 3])
def test_the_same_weights_in_gguf_give_the_same_logits(folder, tmp_path, parts):
    files = write_gguf(folder, tmp_path / "small.gguf", parts)
    assert len(files) == parts
    there, here = load_language_model(str(folder)), load_language_model(str(files[0]))
    assert torch.allclose(logits(there), logits(here), atol=1e-5)
    assert here.tokenizer.chat_template == there.tokenizer.chat_template
    assert f"GGUF {files[0].name}" in here.note and "F32" in here.note
    assert find_model(str(tmp_path)) == str(files[0]) and load_config(str(files[0])).model_type == "llama"
    again = load_language_model(str(tmp_path))
    assert same_language_model(here.identity(), again.identity()) is None
    assert weights_sha256(here.model) == weights_sha256(again.model)


def test_a_header_is_parsed_once(folder, tmp_path, monkeypatch):
    """It has every word of the vocabulary, which takes the package gguf seconds for a real one."""
    import gguf
    from gguf.gguf_reader import GGUFReader

    (file,) = write_gguf(folder, tmp_path / "small.gguf")
    real, parsed = GGUFReader.__init__, []
    monkeypatch.setattr(
        GGUFReader, "__init__", lambda self, path, *mode: parsed.append(path) or real(self, path, *mode)
    )
    load_language_model(str(file))
    assert parsed == [file]
    with gguf_arguments(GgufFile((file,), "F32", None)) as shown:
        assert gguf.GGUFReader(file).fields.keys() == GGUFReader(file).fields.keys(), "another file is read as ever"
        shown_file = Path(shown["pretrained_model_name_or_path"]) / shown["gguf_file"]
        assert gguf.GGUFReader(shown_file) is gguf.GGUFReader(str(shown_file))
    assert gguf.GGUFReader is GGUFReader and len(parsed) == 4


def test_quantized_weights_are_unpacked_to_the_chosen_precision(folder, tmp_path):
    (file,) = write_gguf(folder, tmp_path / "small.gguf", kind="Q8_0")
    there = load_language_model(str(folder))
    for precision in ("fp32", "fp16"):
        lm = load_language_model(str(file), precision=precision)
        assert {p.dtype for p in lm.model.parameters()} == {torch.float32 if precision == "fp32" else torch.float16}
        assert f"Q8_0, dequantized to {precision}: answers follow the dequantized weights" in lm.note
        error = (logits(lm) - logits(there)).square().mean().sqrt()
        assert 0 < error < 0.05 * logits(there).std()
    add_lora(lm, 2, 4.0)
    remove_lora(lm)
    lm.model.save_pretrained(tmp_path / "unpacked")
    lm.tokenizer.save_pretrained(tmp_path / "unpacked")
    copy = load_language_model(str(tmp_path / "unpacked"), precision="fp16")
    assert torch.equal(logits(copy), logits(lm))
    with pytest.raises(AdapterError, match="--precision 4bit quantizes weights in full precision"):
        load_language_model(str(file), precision="4bit")


def test_what_lies_beside_a_gguf_file_changes_nothing(folder, tmp_path):
    (file,) = write_gguf(folder, tmp_path / "small.gguf")
    alone = load_language_model(str(file)).identity()
    other = tiny.save_language_model("llama", tmp_path / "other")
    for neighbour in other.iterdir():
        shutil.copy(neighbour, tmp_path)
    assert load_language_model(str(file)).identity() == alone
    assert find_model(str(tmp_path)) == str(tmp_path), "the folder's own safetensors are the model"


def test_wrong_gguf_files_get_a_sentence(folder, tmp_path, monkeypatch):
    files = write_gguf(folder, tmp_path / "small.gguf", 3)
    with pytest.raises(AdapterError, match="is part 2 of a model; name its first file, small-00001-of-00003"):
        load_language_model(str(files[1]))
    shutil.copy(files[0], tmp_path / "one.gguf")
    with pytest.raises(AdapterError, match="is one of 3 parts, and its name doesn't say which"):
        load_language_model(str(tmp_path / "one.gguf"))
    with pytest.raises(AdapterError, match=r"holds 2 GGUF models; name one file: one\.gguf, small-00001"):
        load_language_model(str(tmp_path))
    files[2].unlink()
    with pytest.raises(AdapterError, match=r"lacks small-00003-of-00003.gguf, one of the model's 3 parts"):
        load_language_model(str(files[0]))
    with pytest.raises(AdapterError, match="there is no such file"):
        load_language_model(str(tmp_path / "none.gguf"))
    whole = tmp_path / "whole" / "whole.gguf"
    whole.parent.mkdir()
    write_gguf(folder, whole)
    data = whole.read_bytes()
    for size in (2, 30, 500, len(data) // 2, len(data) - 40):
        whole.write_bytes(data[:size])
        with pytest.raises(AdapterError, match=r"whole\.gguf is (cut or damaged|not a GGUF file)"):
            load_language_model(str(whole))
    whole.write_bytes(data)
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AdapterError, match=r"needs the package gguf: pip install 'periscope-adapters\[gguf\]'"):
        load_language_model(str(whole))


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="python -m studies.real.assets --only smollm2 makes the file")
def test_a_real_model_in_gguf_knows_the_capital_of_france_learns_and_answers():
    lm = load_language_model(str(REAL))
    assert "Q4_1, dequantized to fp32" in lm.note and lm.tokenizer.chat_template
    said = logits(lm, "The capital of France is")[0, -1].argmax()
    assert lm.tokenizer.decode(said) == " Paris"
    model = tiny.adapted(REAL)
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "a cat"}]
    texts, features = [model.prompt.segments(turns, ["m"])], {"m": torch.randn(12)}
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss, _ = model.loss(texts, features)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[2] < losses[0]
    asked = [model.prompt.segments(turns, ["m"], answer=False)]
    assert isinstance(model.generate(asked, features, max_new_tokens=4)[0], str)
    assert same_language_model(lm.identity(), load_language_model(str(REAL)).identity()) is None
