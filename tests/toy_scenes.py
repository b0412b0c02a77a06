"""Texts, batches and a feature set in memory, for tests of training."""

import torch

from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template
from periscope.shards.texts import Text
from periscope.training.data.dataset import Batch, TextFeatureDataset


def some_batch(model, n=7):
    words = ["a red circle", "the quick brown fox jumps over the lazy dog", "blue", "in the top left, in the centre"]
    texts = [
        model.prompt.segments([{"role": "assistant", "content": words[i % 4]}], [f"m{i}"], soft_prompt=True)
        for i in range(n)
    ]
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(n, 6, generator=generator)
    return Batch(texts, [f"m{i}" for i in range(n)], rows, sum(len(s.ids) for text in texts for s in text if s.target))


COLOURS, SHAPES = ["red", "blue", "small", "brown"], ["circle", "star", "fox", "dog"]
CODES = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))


class Scenes:
    """A feature set of 64 media, each with a colour and a shape: the sum of their codes, or one patch for each."""

    def __init__(self, patches: bool = False):
        self.patches = patches
        self.manifest = {"features": {"patches" if patches else "pooled": {}}}

    def __len__(self):
        return 64

    def row(self, key):
        return int(key[1:])

    def read_many(self, keys, kind, **_):
        codes = [(int(key[1:]) // 4 % 4, 4 + int(key[1:]) % 4) for key in keys]
        rows = torch.stack([CODES[list(pair)] for pair in codes])
        return (rows if self.patches else rows.sum(1)).half()


def scene_texts(count: int = 64) -> list[Text]:
    words = [f"a {COLOURS[i // 4 % 4]} {SHAPES[i % 4]}" for i in range(count)]
    return [Text(f"t{i}", (f"m{i}",), ({"role": "assistant", "content": w},), "train") for i, w in enumerate(words)]


def prepared(language_model_folder, spec: str = "mlp4", **form) -> tuple[AdaptedModel, TextFeatureDataset]:
    lm = load_language_model(str(language_model_folder("llama")))
    torch.manual_seed(3)
    adapter = Adapter(spec, FeatureShape("pooled", 1, 24), lm.hidden_size, lm.embedding_rms, **form)
    # as_string=False: the numbers of steps that tests of learning take were found with these ids
    model = AdaptedModel(lm, adapter, Prompt(lm.tokenizer, Template(as_string=False)))
    return model, TextFeatureDataset(Scenes(), model.prompt, adapter)
