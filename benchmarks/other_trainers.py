"""How does training compare with what people use instead? nanoVLM's loop, and LLaVA's first stage by the HF Trainer.

Both are rebuilt from what their code does, with the frozen encoder in every step and random batches:

- nanoVLM (https://github.com/huggingface/nanoVLM, train.py and models/vision_language_model.py): texts padded to one
  fixed length, here that of the longest caption; the image's vectors before all words; the output layer at all words.
- LLaVA's first stage (https://github.com/haotian-liu/LLaVA, llava/model/llava_arch.py, scripts/v1_5/pretrain.sh):
  transformers' Trainer; each text assembled and padded to the longest of its batch; the output layer at all positions.
  Its script also recomputes every layer in the backward pass, which only costs time where memory suffices: left out.

All train the same projector of the same features before the same language model, in the shapes of SigLIP-B/16 at 384
pixels and SmolLM2-135M with random weights, on captions of Conceptual Captions' lengths. Pixels are ready in memory:
decoding, which both also repeat in every epoch, isn't counted. Each runs at the best of four batch sizes.
"""

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import SequentialSampler
from transformers import SiglipVisionConfig, SiglipVisionModel, Trainer, TrainingArguments

from benchmarks import side_by_side
from benchmarks._meters import DEVICE, peak_bytes, seconds
from benchmarks._synthetic import adapted, evenly, language_model, some_steps
from benchmarks.published_loop import CONFIG, cut, pairs_of, train
from periscope.adapters.model import AdaptedModel
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.segments import Segment
from periscope.adapters.splice import IGNORED
from periscope.training.data.dataset import Batch

MODEL: dict[str, Any] = {"layers": 30, "width": 576, "inner": 1536, "vocab": 49_152, "key_value_heads": 3, "tied": True}
ENCODER = SiglipVisionConfig(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=384,
    patch_size=16,
)
IMAGES = 2  # different ones; what they show doesn't matter


@dataclass(frozen=True)
class Case:
    """An adapter and the kind of features it reads, how many captions there are, how many are timed, and the batch
    sizes to choose from.
    """

    spec: str
    kind: str
    texts: int
    timed: int
    sizes: tuple[int, ...]


CASES = {
    "mlp16": Case("mlp16", "pooled", 1024, 8, (2, 4, 8, 16)),
    "576 patches": Case("mlp", "patches", 64, 2, (1, 2, 3, 4)),
}


@dataclass(frozen=True)
class Sample:
    """A picture's pixels `(3, side, side)` and the ids of its caption."""

    pixels: torch.Tensor
    ids: tuple[int, ...]


def measure(rounds: int) -> dict[str, dict]:
    """{"against LOOP, CASE": {"ratio": of samples per second after the first epoch, "samples/s", "its samples/s", "our
    batch", "its batch", "break-even": epochs after which encoding once is faster, "memory": ours over its, in "GiB" and
    "its GiB" above the weights}}.
    """
    found: dict[str, dict] = {}
    with torch.device(DEVICE):
        encoder = SiglipVisionModel(ENCODER).eval().requires_grad_(False)
    lm = language_model(**MODEL)
    encoder.to(dtype=lm.dtype)
    for name, case in CASES.items():
        model = adapted(lm, case.spec, feature_shape(case.kind), output_norm=False)
        found |= compare(name, case, Loops(model, encoder, case.kind), rounds)
    return found


def feature_shape(kind: str) -> FeatureShape:
    """What the encoder gives."""
    assert isinstance(ENCODER.image_size, int) and isinstance(ENCODER.patch_size, int)
    side = ENCODER.image_size // ENCODER.patch_size
    width = ENCODER.hidden_size
    return (
        FeatureShape("pooled", 1, width) if kind == "pooled" else FeatureShape(kind, side * side, width, (side, side))
    )


def compare(name: str, case: Case, loops: "Loops", rounds: int) -> dict[str, dict]:
    """The rows of one case."""
    ways: dict[str, dict[int, Callable[[], object]]] = {"ours": {}, "nanoVLM's loop": {}, "LLaVA's stage 1": {}}
    for size in case.sizes:
        batches = some_steps(loops.model, case.texts, 1, size, case.texts // size)
        samples = loops.samples(batches)
        random.Random(0).shuffle(samples)
        at_random = sorted(cut(samples, size), key=lambda batch: max(len(sample.ids) for sample in batch))
        timed = -(-case.timed // size)
        longest = max(len(sample.ids) for sample in samples)
        own = [loops.with_features(batch) for batch in evenly(batches, timed)]
        ways["ours"][size] = partial(train, loops.model, own)
        ways["nanoVLM's loop"][size] = partial(loops.nanovlm, evenly(at_random, timed), longest)
        ways["LLaVA's stage 1"][size] = partial(loops.llava, evenly(at_random, timed))
    best = {loop: _quickest(by_size, case.timed) for loop, by_size in ways.items()}
    chosen: dict[str, Callable[[], object]] = {loop: ways[loop][size] for loop, size in best.items()}
    chosen["encode"] = partial(loops.encode, torch.stack([loops.pixels[0]] * case.sizes[1]))
    took = side_by_side(chosen, rounds, seconds)
    each = {loop: took[loop] / _count(size, case.timed) for loop, size in best.items()}
    once = took["encode"] / case.sizes[1]
    memory = {loop: peak_bytes(way) / 2**30 for loop, way in chosen.items()}
    return {
        f"against {loop}, {name}": {
            "ratio": each[loop] / each["ours"],
            "samples/s": 1 / each["ours"],
            "its samples/s": 1 / each[loop],
            "our batch": best["ours"],
            "its batch": best[loop],
            "break-even": once / (each[loop] - each["ours"]),
            "memory": memory["ours"] / memory[loop],
            "GiB": memory["ours"],
            "its GiB": memory[loop],
        }
        for loop in list(best)[1:]
    }


class Loops:
    """The loops on one adapted model, with the encoder whose `kind` of features its adapter reads."""

    def __init__(self, model: AdaptedModel, encoder: SiglipVisionModel, kind: str):
        self.model, self.encoder, self.kind = model, encoder, kind
        side: Any = encoder.config.image_size
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(IMAGES, 3, side, side, generator=generator).to(model.lm.device, model.lm.dtype)
        self.features = self.encode(self.pixels).half().cpu()

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """The pooled vectors, or the patches of the last layer but one, as LLaVA reads them."""
        if self.kind == "pooled":
            return self.encoder(pixel_values=pixels).pooler_output
        return self.encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]

    def samples(self, batches: Sequence[Batch]) -> list[Sample]:
        """The texts of batches, with pixels."""
        ids = [ids for batch in batches for _, ids in pairs_of(batch)]
        return [Sample(self.pixels[number % IMAGES], tuple(one)) for number, one in enumerate(ids)]

    def with_features(self, batch: Batch) -> Batch:
        """The batch with the features of these pixels, and a start token before each text."""
        texts = [[Segment(ids=(self.start,)), *text] for text in batch.texts]
        return replace(batch, texts=texts, rows=self.features[torch.arange(len(batch.keys)) % IMAGES])

    def nanovlm(self, batches: Sequence[Sequence[Sample]], longest: int) -> float:
        """nanoVLM's steps with frozen backbones; returns the mean loss of a step. longest: tokens of a caption."""
        lm, adapter = self.model.lm.model, self.model.adapter
        optimizer, losses = torch.optim.AdamW(adapter.parameters(), lr=CONFIG.lr), []
        for batch in batches:
            ids = torch.zeros(len(batch), 1 + longest, dtype=torch.long)
            mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
            for row, sample in enumerate(batch):
                count = len(sample.ids)
                ids[row, 0], ids[row, 1 : 1 + count] = self.start, torch.tensor(sample.ids)
                mask[row, : 1 + count], labels[row, :count] = 1, torch.tensor(sample.ids)
            ids, mask, labels = (tensor.to(lm.device) for tensor in (ids, mask, labels))
            image = adapter(self.encode(torch.stack([sample.pixels for sample in batch]))).to(lm.dtype)
            embeds = torch.cat([image, lm.get_input_embeddings()(ids)], 1)
            mask = torch.cat([mask.new_ones(image.shape[:2]), mask], 1)
            hidden = lm.get_decoder()(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
            logits = lm.get_output_embeddings()(hidden)[:, image.shape[1] :]
            loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    def llava(self, batches: Sequence[Sequence[Sample]]) -> float:
        """LLaVA's first stage by the Trainer; returns the mean loss of a step."""
        dataset: Any = [sample for batch in batches for sample in batch]
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                per_device_train_batch_size=len(batches[0]),
                max_steps=len(batches),
                learning_rate=CONFIG.lr,
                lr_scheduler_type="cosine",
                warmup_steps=0.03,
                weight_decay=0.0,
                use_cpu=DEVICE == "cpu",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            trainer = _InOrder(_Llava(self), arguments, data_collator=_collate, train_dataset=dataset)
            trainer.pop_callback(_printer())
            return trainer.train().training_loss

    @property
    def start(self) -> int:
        """The id that a text begins with."""
        return self.model.lm.tokenizer.bos_token_id


class _Llava(nn.Module):
    """LLaVA's model: the start token, the image's vectors, the caption; logits and loss by the language model."""

    def __init__(self, loops: Loops):
        super().__init__()
        self.loops, self.adapter = loops, loops.model.adapter

    def forward(self, pixels: torch.Tensor, captions: list[tuple[int, ...]]) -> dict[str, torch.Tensor]:
        lm = self.loops.model.lm.model
        images = self.adapter(self.loops.encode(pixels)).to(lm.dtype)
        rows, labels = [], []
        for image, caption in zip(images, captions, strict=True):
            ids = torch.tensor([self.loops.start, *caption], device=lm.device)
            words = lm.get_input_embeddings()(ids)
            rows.append(torch.cat([words[:1], image, words[1:]]))
            labels.append(torch.cat([ids.new_full((1 + len(image),), IGNORED), ids[1:]]))
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long, device=lm.device) for row in rows], True)
        targets = pad_sequence(labels, True, IGNORED)
        output = lm(inputs_embeds=pad_sequence(rows, True), attention_mask=mask, labels=targets, use_cache=False)
        return {"loss": output.loss}


class _InOrder(Trainer):
    """A Trainer that takes the samples as they come: they are in random order."""

    def _get_train_sampler(self, *_: object) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def _collate(samples: Sequence[Sample]) -> dict[str, Any]:
    return {"pixels": torch.stack([s.pixels for s in samples]), "captions": [s.ids for s in samples]}


def _printer() -> type:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _count(size: int, timed: int) -> int:
    """How many samples are timed in batches of this size."""
    return -(-timed // size) * size


def _quickest(ways: Mapping[int, Callable[[], object]], timed: int) -> int:
    """The batch size with the most samples per second, in one go each."""
    took = {}
    for size, way in ways.items():
        began = seconds()
        way()
        took[size] = (seconds() - began) / _count(size, timed)
    return min(took, key=took.__getitem__)
