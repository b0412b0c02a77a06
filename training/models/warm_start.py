"""Warm start: contrastive steps that pull projected tokens toward their captions' embeddings before training.

Tokens that mean nothing to a frozen language model get gradients that carry little information, and some projectors
never recover from that. What the words mean to the model is known: their embeddings. A few dozen steps against these
alone, without a pass through the language model, bring the tokens to where it can read them (docs/warm_start.md).
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from periscope.adapters.model import AdaptedModel
from periscope.bars import progress_bar
from periscope.errors import AdapterError
from periscope.training.data.dataset import TextFeatureDataset, TextIndex
from periscope.training.data.order import TextOrder, steps_per_epoch
from periscope.training.data.steps import choose_view

BATCH_MEDIA = 64  # media contrasted with one another in a step
SILENT_SECONDS = 3.0  # before a progress bar appears
INVERSE_TEMPERATURE = 10.0  # factor of the cosines before the softmax


def warm_start(
    model: AdaptedModel, dataset: TextFeatureDataset, index: TextIndex, steps: int, lr: float, seed: int
) -> list[float]:
    """Take `steps` steps of AdamW at `lr` on the contrast of tokens and words; return the loss of each, in nats.

    Only texts about one medium count, and only captions where there are any. Draws nothing from torch's generator: the
    seed fixes the order of texts. The tokens end at the embeddings' RMS, as they started. Raises AdapterError for an
    adapter whose tokens don't stand among words, and when no text is about one medium.
    """
    adapter = model.adapter
    if not _among_words(model):
        raise AdapterError(f"--warm-start needs an adapter whose tokens stand among the words; not {adapter.spec}")
    about_one = _about_one(index)
    usable = [i for i in about_one if not index.is_question[i]] or about_one
    if not usable:
        raise AdapterError("--warm-start needs texts about one medium each; there are none")
    optimizer = torch.optim.AdamW(adapter.projector.parameters(), lr=lr, weight_decay=0.0)
    stored_views = dataset.features.manifest["features"][dataset.kind].get("views", 1)
    losses: list[float] = []
    known: dict[str, torch.Tensor] = {}  # words -> their mean embedding: a small set has its texts in many steps
    order = _order([index.about[i] for i in usable], steps, seed)
    shown = progress_bar(order, "warm start", unit=" steps", leave=False, delay=SILENT_SECONDS)
    for number, step in enumerate(shown):
        words: dict[str, str] = {}
        for text in (index.texts[usable[i]] for i in step):
            words[text.media[0]] = words.get(text.media[0], "") + " " + text.turns[-1]["content"]
        chosen = [choose_view(seed, number, medium, stored_views) for medium in words]
        views = {"views": chosen} if stored_views > 1 else {}
        features = dataset.features.read_many(list(words), dataset.kind, **views).to(model.lm.device)
        known |= {caption: _mean_embedding(model, caption) for caption in words.values() if caption not in known}
        embeddings = torch.stack([known[caption] for caption in words.values()])
        loss = contrast(adapter(features).mean(1), embeddings, _same_words(list(words.values())))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if steps:
        adapter.match_scale(features)
    return losses


def can_warm_start(model: AdaptedModel, index: TextIndex) -> bool:
    """Whether the adapter's tokens stand among words, and any text is about one medium."""
    return _among_words(model) and bool(_about_one(index))


def _among_words(model: AdaptedModel) -> bool:
    return bool(model.adapter.tokens) and not model.adapter.injects


def _about_one(index: TextIndex) -> list[int]:
    """The texts about one medium."""
    return [i for i, media in enumerate(index.media) if media == 1]


def contrast(tokens: torch.Tensor, words: torch.Tensor, same: torch.Tensor | None = None) -> torch.Tensor:
    """CLIP's symmetric cross-entropy of cosines (Radford et al. 2021, arXiv 2103.00020), in nats.

    tokens, words: `(media, hidden_size)`; row i of each belongs to medium i. Both are centred over the media first, so
    that a component which all share, and which a constant output would match, doesn't count. same: `(media, media)`
    bool, pairs of different media that have the same words and so aren't contrasted with each other.
    """
    tokens, words = (functional.normalize(rows - rows.mean(0), dim=-1) for rows in (tokens, words))
    scores = INVERSE_TEMPERATURE * tokens @ words.T
    if same is not None:
        scores = scores.masked_fill(same.to(scores.device), -torch.inf)
    labels = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)) / 2


def _same_words(words: Sequence[str]) -> torch.Tensor | None:
    """Which pairs of different media have the same words, `(media, media)` bool; None when there are none."""
    if len(set(words)) == len(words):
        return None
    numbers = {text: number for number, text in enumerate(dict.fromkeys(words))}
    column = torch.tensor([numbers[text] for text in words])
    return (column[:, None] == column) & ~torch.eye(len(words), dtype=torch.bool)


def _order(about: Sequence[int], steps: int, seed: int) -> list[Sequence[int]]:
    order: list[Sequence[int]] = []
    alike = [1] * len(about)
    texts = TextOrder(about, alike, alike, BATCH_MEDIA, seed, texts_per_medium=1)
    while len(order) < steps:
        order += texts.steps(len(order) // steps_per_epoch(len(about), BATCH_MEDIA))
    return order[:steps]


@torch.no_grad()
def _mean_embedding(model: AdaptedModel, words: str) -> torch.Tensor:
    ids = model.lm.tokenizer(words, add_special_tokens=False, split_special_tokens=True).input_ids
    return model.lm.embed(torch.tensor(ids, device=model.lm.device)).float().mean(0)
