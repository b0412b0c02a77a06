"""Random models and feature sets for the benchmarks."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks._meters import DEVICE
from periscope.adapters.lm.language_model import LanguageModel, freeze
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template
from periscope.shards.features import encode
from periscope.shards.layout import stored_bytes
from periscope.shards.read import FeatureSet
from periscope.shards.write import SetWriter, make_key, samples_per_shard
from periscope.training.config import TrainConfig
from periscope.training.data.dataset import Batch, TextFeatureDataset
from periscope.training.data.steps import TrainingSteps

# LLaVA-CC3M's captions are Conceptual Captions': 10.3 tokens, standard deviation 4.5, median 9 (Sharma et al. 2018,
# https://aclanthology.org/P18-1238, table 2), as a log-normal; a language model's tokenizer makes about 1.3 of a word.
MEAN, DEVIATION, TOKENS_A_WORD = 10.3, 4.5, 1.3
CONFIG = TrainConfig(lr=1e-3)
WORDS = [f"w{number}" for number in range(1000)]


def caption_lengths(count: int, seed: int = 0) -> list[int]:
    """Lengths in tokens, distributed like those of LLaVA's captions."""
    spread = math.sqrt(math.log(1 + (DEVIATION / MEAN) ** 2))
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * spread
    words = MEAN * (drawn - spread**2 / 2).exp()
    return (words * TOKENS_A_WORD).round().clamp(min=3).int().tolist()


def language_model(
    layers: int = 8,
    width: int = 512,
    inner: int = 1408,
    vocab: int = 32_000,
    key_value_heads: int | None = None,
    tied: bool = False,
) -> LanguageModel:
    """A random Llama, fp32 on a CPU and fp16 on a GPU; each word `w0`, `w1`, ... is one token.

    key_value_heads: None for as many as there are heads of queries · tied: the output layer's weights are the words'.
    """
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=key_value_heads,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if DEVICE == "cpu" else torch.float16)
    special = ["<unk>", "<s>", "</s>"]
    ids = {word: i for i, word in enumerate([*special, *(f"w{number}" for number in range(vocab - len(special)))])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return freeze("random", model, tokenizer)


def adapted(lm: LanguageModel, spec: str, shape: FeatureShape, **form) -> AdaptedModel:
    """The language model with a new adapter and a plain prompt without delimiters. `form` goes to Adapter."""
    torch.manual_seed(0)
    adapter = Adapter(spec, shape, lm.hidden_size, lm.embedding_rms, **form).to(lm.device)
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, Template(delimiters=("", ""))))


def feature_set(
    folder: Path,
    shape: FeatureShape,
    media: int,
    captions: Sequence[Sequence[int]],
    words: Sequence[str],
    codec: str = "fp16",
) -> FeatureSet:
    """A set of random features in which medium i has captions of `captions[i % len(captions)]` words from `words`."""
    sizes = [shape.width] if shape.kind == "pooled" else [shape.tokens, shape.width]
    entry: dict[str, Any] = {"shape": sizes, "dtype": "float16", "codec": codec}
    if shape.grid:
        entry["grid"] = list(shape.grid)
    encoder = {"name": "random", "library": "none", "id": "", "class": "None", "fingerprint": "0" * 64}
    generator = torch.Generator().manual_seed(0)
    drawn = [encode(shape.kind, torch.randn(sizes, generator=generator), entry) for _ in range(64)]
    keys = [make_key(f"{number:07d}.jpg") for number in range(media)]
    some = samples_per_shard(stored_bytes(entry))
    with SetWriter(folder, "image", encoder, {shape.kind: entry}) as writer:
        for first in range(0, media, some):
            with writer.shard() as shard:
                for number in range(first, min(first + some, media)):
                    info = {"modality": "image", "origin": f"{number:07d}.jpg", "sha256": f"{number:064x}"}
                    shard.add(keys[number], drawn[number % 64], info)
        writer.finish(_texts(keys, captions, words), set(), lambda _: (), [])
    return FeatureSet(folder)


def _texts(keys: Sequence[str], captions: Sequence[Sequence[int]], words: Sequence[str]) -> Iterator[dict]:
    for i, key in enumerate(keys):
        for j, length in enumerate(captions[i % len(captions)]):
            said = " ".join(words[(7919 * i + 104729 * j + 31 * k) % len(words)] for k in range(length))
            turns = [{"role": "assistant", "content": said}]
            yield {"id": f"{i}-{j}", "media": [key], "turns": turns, "split": "train", "meta": {}}


def steps_of(model: AdaptedModel, features: FeatureSet, batch: int) -> TrainingSteps:
    """The training steps of `batch` texts each, as train.py makes them."""
    encoded = TextFeatureDataset(features, model.prompt, model.adapter)
    return TrainingSteps(encoded, encoded.keep(features.texts(), model.lm.max_length), batch, seed=0)


def some_steps(model: AdaptedModel, media: int, captions: int, batch: int, count: int) -> list[Batch]:
    """`count` steps from a training set of its own, evenly spaced from the shortest texts to the longest. The set has
    `media` random media with `captions` captions each, whose lengths are distributed like LLaVA's.
    """
    lengths = iter(caption_lengths(media * captions))
    words = [[next(lengths) for _ in range(captions)] for _ in range(media)]
    with tempfile.TemporaryDirectory() as folder:
        features = feature_set(Path(folder), model.adapter.features, media, words, WORDS)
        steps = steps_of(model, features, batch)
        every = sorted((steps[n] for n in range(steps.per_epoch)), key=lambda step: step.targets / len(step))
    return evenly(every, count)


def evenly(batches: list, count: int) -> list:
    """`count` of the batches: the middles of that many parts of the list."""
    return [batches[int((number + 0.5) * len(batches) / count)] for number in range(count)]
