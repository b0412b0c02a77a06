"""How does training compare with the loop that doubutsu's author describes? Samples per second, and memory.

The loop is rebuilt from the description: random batches, padded, each text's vectors assembled token by token, logits
over the whole vocabulary at all positions (as transformers computes them from `labels`), one optimizer step per batch.
Both variants train the same projector on texts with lengths like LLaVA's, each at the best of three batch sizes. Some
batches of each are timed, evenly spaced from the shortest texts to the longest. On the same batches both give the same
loss.
"""

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks import side_by_side
from benchmarks._meters import peak_bytes, seconds
from benchmarks._synthetic import adapted, evenly, language_model, some_steps
from periscope.adapters.model import AdaptedModel
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.splice import IGNORED
from periscope.training.config import TrainConfig
from periscope.training.data.dataset import Batch
from periscope.training.step import make_optimizer, take_step

MODEL: dict[str, Any] = {"layers": 8, "width": 512, "inner": 1408}
CONFIG = TrainConfig(lr=0.0)  # nothing is learnt, so the losses stay the same
POOLED, PATCHES = FeatureShape("pooled", 1, 768), FeatureShape("patches", 576, 1024, (24, 24))
# case: adapter, features, vocabulary, texts in the set, how many are timed, batch sizes to choose from
CASES = {
    "16 tokens, vocabulary 32k": ("mlp16", POOLED, 32_000, 2048, 96, (8, 16, 32)),
    "16 tokens, vocabulary 128k": ("mlp16", POOLED, 128_000, 2048, 96, (8, 16, 32)),
    "576 tokens, vocabulary 128k": ("linear", PATCHES, 128_000, 64, 4, (1, 2, 4)),
}


def measure(rounds: int) -> dict[str, dict]:
    """{"against the published loop, CASE": {"ratio": of samples per second, "samples/s", "our batch", "its batch",
    "losses apart"}, "memory of it, CASE": {"ratio": of the peaks above the weights at the largest batch, "GiB", "its
    GiB"}}.
    """
    found = {}
    for name, (spec, shape, vocab, texts, timed, sizes) in CASES.items():
        model = adapted(language_model(vocab=vocab, **MODEL), spec, shape, output_norm=False)
        ours, theirs = {}, {}
        for size in sizes:
            batches = some_steps(model, texts, 1, size, texts // size)
            drawn = [pair for batch in batches for pair in pairs_of(batch)]
            random.Random(0).shuffle(drawn)
            at_random = sorted(cut(drawn, size), key=lambda pairs: max(len(ids) for _, ids in pairs))
            ours[size] = partial(train, model, evenly(batches, timed // size))
            theirs[size] = partial(publish, model, evenly(at_random, timed // size))
        own, its = _quickest(ours), _quickest(theirs)
        took = side_by_side({"ours": ours[own], "theirs": theirs[its]}, rounds, seconds)
        same = [pairs_of(batch) for batch in ours[its].args[1]]
        found[f"against the published loop, {name}"] = {
            "ratio": took["theirs"] / took["ours"],
            "samples/s": timed / took["ours"],
            "our batch": own,
            "its batch": its,
            "losses apart": abs(ours[its]() - publish(model, same)),
        }
        peaks = [peak_bytes(way[max(sizes)]) / 2**30 for way in (ours, theirs)]
        found[f"memory of it, {name}"] = {"ratio": peaks[0] / peaks[1], "GiB": peaks[0], "its GiB": peaks[1]}
        del model, ours, theirs
    return found


def cut(pairs: list, size: int) -> list[list]:
    """Batches of pairs of features and captions."""
    return [pairs[first : first + size] for first in range(0, len(pairs), size)]


def train(model: AdaptedModel, batches: list[Batch]) -> float:
    """Periscope's steps; returns the mean loss per target token."""
    optimizer = make_optimizer(model.trained(), CONFIG)
    scaler = torch.amp.GradScaler(model.lm.device.type, enabled=model.lm.dtype == torch.float16)
    losses = [take_step(model, optimizer, scaler, batch, len(batch), clip=1.0)[0] for batch in batches]
    targets = [batch.targets for batch in batches]
    return sum(a * b for a, b in zip(losses, targets, strict=True)) / sum(targets)


def publish(model: AdaptedModel, batches: list[list]) -> float:
    """The published loop's steps, one per batch of features and captions; returns the mean loss per target token."""
    lm, projector = model.lm.model, model.adapter
    embed, device = lm.get_input_embeddings(), model.lm.device
    optimizer = torch.optim.AdamW(projector.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler(device.type, enabled=model.lm.dtype == torch.float16)
    total, count = 0.0, 0
    for batch in batches:
        features, captions = zip(*batch, strict=True)
        pictures = projector(torch.stack(features).to(device)).to(model.lm.dtype)
        rows, labels = [], []
        for picture, caption in zip(pictures, captions, strict=True):
            ids = torch.tensor(caption, device=device)
            rows.append(torch.cat([picture, *(embed(one[None]) for one in ids)]))
            labels.append(torch.cat([ids.new_full((len(picture),), IGNORED), ids]))
        targets = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        mask = pad_sequence([row.new_ones(len(row)) for row in rows], batch_first=True)
        embeds = pad_sequence(rows, batch_first=True)
        loss = lm(inputs_embeds=embeds, attention_mask=mask, labels=targets, use_cache=False).loss
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        told = sum(map(len, captions))
        total, count = total + loss.item() * told, count + told
    return total / count


def pairs_of(batch: Batch) -> list[tuple[torch.Tensor, list[int]]]:
    """Each text's features and target ids."""
    told = [[token for segment in text if segment.target for token in segment.ids] for text in batch.texts]
    slots = [next(segment.slot for segment in text if segment.slot) for text in batch.texts]
    return [(batch.features[slot], ids) for slot, ids in zip(slots, told, strict=True)]


def _quickest(ways: Mapping[int, Callable[[], object]]) -> int:
    took = side_by_side(ways, 1, seconds)
    return min(took, key=took.__getitem__)
