"""Sounds of the study on real weights: Whisper from CTranslate2's file; slow: Whisper base itself, and spoken names."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from real_assets import asset
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from periscope.precompute.media import decode_sound
from studies.real import assets, judge, speech, whisper


def ctranslate2_file(model: WhisperForConditionalGeneration, path: Path) -> None:
    """A Whisper as CTranslate2 writes it: query, key and value joined, names of its own, numbers without gaps."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def weights(theirs: str, *names: str) -> dict[str, np.ndarray]:
        width = state[f"{names[0]}.weight"].shape[0]
        biases = [state.get(f"{name}.bias", np.zeros(width, np.float32)) for name in names]
        return {f"{theirs}/weight": np.concatenate([state[f"{name}.weight"] for name in names]),
                f"{theirs}/bias": np.concatenate(biases)}  # fmt: skip

    def norm(theirs: str, name: str) -> dict[str, np.ndarray]:
        return {f"{theirs}/gamma": state[f"{name}.weight"], f"{theirs}/beta": state[f"{name}.bias"]}

    def attention(theirs: str, name: str, groups: list[str]) -> dict[str, np.ndarray]:
        found = norm(f"{theirs}/layer_norm", f"{name}_layer_norm")
        for number, letters in enumerate(groups):
            found |= weights(f"{theirs}/linear_{number}", *(f"{name}.{letter}_proj" for letter in letters.split()))
        return found

    tensors = {"decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"]}
    for conv in ("conv1", "conv2"):
        tensors |= weights(f"encoder/{conv}", f"model.encoder.{conv}")
    for side in ("encoder", "decoder"):
        tensors[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        tensors |= norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for number in range(2):
            theirs, name = f"{side}/layer_{number}", f"model.{side}.layers.{number}"
            tensors |= attention(f"{theirs}/self_attention", f"{name}.self_attn", ["q k v", "out"])
            if side == "decoder":
                tensors |= attention(f"{theirs}/attention", f"{name}.encoder_attn", ["q", "k v", "out"])
            tensors |= norm(f"{theirs}/ffn/layer_norm", f"{name}.final_layer_norm")
            for place in (0, 1):
                tensors |= weights(f"{theirs}/ffn/linear_{place}", f"{name}.fc{place + 1}")
    text = lambda words: struct.pack("<H", len(words) + 1) + words.encode() + b"\0"  # noqa: E731
    parts = [struct.pack("<I", 6), text("WhisperSpec"), struct.pack("<II", 3, len(tensors))]
    for name, array in tensors.items():
        half = array.astype(np.float16)
        shape, kind = struct.pack(f"<B{half.ndim}I", half.ndim, *half.shape), struct.pack("<BI", 4, half.nbytes)
        parts += [text(name), shape, kind, half.tobytes()]
    path.write_bytes(b"".join(parts) + struct.pack("<I", 0))


def test_whispers_tensors_come_from_ctranslate2s_file(tmp_path) -> None:
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in
             (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))}  # fmt: skip
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    positions = {"max_source_positions": 10, "max_target_positions": 12}
    config = WhisperConfig(d_model=16, vocab_size=60, num_mel_bins=8, **positions, **special, **sizes)
    model = WhisperForConditionalGeneration(config).half().float()
    for bias in (module.bias for module in model.modules() if isinstance(module, torch.nn.Linear)):
        if bias is not None:
            torch.nn.init.normal_(bias)
    model = model.half().float()
    ctranslate2_file(model, tmp_path / "model.bin")
    again = whisper.whisper_state(whisper.read_ctranslate2(tmp_path / "model.bin"), 2)
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    (tmp_path / "model.bin").write_bytes(struct.pack("<I", 7))
    with pytest.raises(ValueError, match="version 7 of CTranslate2's format, not 6"):
        whisper.read_ctranslate2(tmp_path / "model.bin")


# Slow: the real weights and sounds


@pytest.mark.slow
def test_whisper_hears_what_is_said() -> None:
    """Its own decoder writes the names that flite speaks, and says them of real recordings as well."""
    place = asset("whisper-base")
    model = WhisperForConditionalGeneration.from_pretrained(place, dtype=torch.float32).eval()
    extract = WhisperFeatureExtractor.from_pretrained(place)
    words = PreTrainedTokenizerFast(tokenizer_file=str(place / "tokenizer.json"))
    start = words.convert_tokens_to_ids(["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"])
    end = words.convert_tokens_to_ids("<|endoftext|>")
    for sound, said in (("spoken/rms/1f336.wav", "hot pepper"), ("stamps/speech/animals-amphibians-frog.ogg", "frog")):
        asset(sound.split("/")[0])
        wave = decode_sound((assets.root() / sound).read_bytes(), extract.sampling_rate)
        given = extract(wave, sampling_rate=extract.sampling_rate, return_tensors="pt").input_features
        ids = list(start)
        with torch.no_grad():
            states = model.model.encoder(given)
            while ids[-1] != end and len(ids) < 20:
                out = model(encoder_outputs=states, decoder_input_ids=torch.tensor([ids]))
                ids.append(int(out.logits[0, -1].argmax()))
        assert judge.normal(words.decode(ids, skip_special_tokens=True)) == said


@pytest.mark.slow
def test_the_names_are_spoken_by_voices_as_they_are_drawn_in_styles() -> None:
    drawn, heard = (assets.metadata(asset(name) / part) for name, part in (("emoji", "small"), ("spoken", "")))
    facts = [[(row["text"], row["split"], row["group"]) for row in rows] for rows in (drawn, heard)]
    assert facts[0] == facts[1] and {row["style"] for row in heard if row["split"] == "val"} == {"slt"}
    assert all((assets.folder("spoken") / row["file_name"]).stat().st_size > 5000 for row in heard)


@pytest.mark.slow
def test_the_recordings_of_a_person_have_known_names() -> None:
    asset("spoken"), asset("stamps")
    rows = speech.recordings()
    assert len(rows) == 32 and ("animals-amphibians-frog.ogg", "A frog.") in rows
