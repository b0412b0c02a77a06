"""A warm start: projected tokens are pulled toward their captions' words before the language model is asked anything.

Tokens that mean nothing to a frozen language model get gradients that say little, and some projectors never find a way
from there. What the words are to the model is known: their embeddings. A few dozen steps against these alone, which
take no pass through the language model, bring the tokens to where it reads (docs/warm_start.md).
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from periscope.adapters.model import AdaptedModel
from periscope.errors import AdapterError
from periscope.training.data.dataset import TextFeatureDataset, TextIndex
from periscope.training.data.order import epoch_steps, steps_per_epoch

MEDIA = 64  # in a step: each medium's words are told from those of so many
SHARPNESS = 10.0  # cosines are multiplied by this before the softmax


def warm_start(
    model: AdaptedModel, encoded: TextFeatureDataset, kept: TextIndex, steps: int, lr: float, seed: int
) -> list[float]:
    """Take `steps` steps of AdamW at `lr` on the contrast of tokens and words, and return what it was at each.

    The words are those of texts about one medium, of captions where there are any. Draws nothing at random: which texts
    make which step is fixed by the seed. The tokens end at the embeddings' RMS, as they began. Raises AdapterError for
    an adapter whose tokens don't stand among words, and when no text is about one medium.
    """
    adapter = model.adapter
    if adapter.injects or not adapter.tokens:
        raise AdapterError(f"--warm-start needs an adapter whose tokens stand among the words; not {adapter.spec}")
    about_one = [i for i, media in enumerate(kept.media) if media == 1]
    usable = [i for i in about_one if not kept.asks[i]] or about_one
    if not usable:
        raise AdapterError("--warm-start needs texts about one medium each; there are none")
    optimizer = torch.optim.AdamW(adapter.projector.parameters(), lr=lr, weight_decay=0.0)
    losses = []
    for step in _order([kept.about[i] for i in usable], steps, seed):
        chosen = [kept.texts[usable[i]] for i in step]
        said = {text.media[0]: "" for text in chosen}
        for text in chosen:
            said[text.media[0]] += " " + text.turns[-1]["content"]
        rows = encoded.features.read_many(list(said), encoded.kind).to(model.lm.device)
        loss = contrast(adapter(rows).mean(1), torch.stack([_mean_embedding(model, words) for words in said.values()]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if steps:
        adapter.match_scale(rows)
    return losses


def contrast(tokens: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """How badly each of `tokens` `(media, hidden_size)` is told by its own of `words` `(media, hidden_size)`, in nats:
    the symmetric cross-entropy of cosines that CLIP trains with (Radford et al. 2021, arXiv 2103.00020).

    Both are taken less their mean over the media, so that what all have in common, which a constant would meet, counts
    for nothing.
    """
    tokens, words = (functional.normalize(rows - rows.mean(0), dim=-1) for rows in (tokens, words))
    scores = SHARPNESS * tokens @ words.T
    own = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2


def _order(about: Sequence[int], steps: int, seed: int) -> list[Sequence[int]]:
    order: list[Sequence[int]] = []
    while len(order) < steps:
        epoch = len(order) // steps_per_epoch(len(about), MEDIA)
        order += epoch_steps(about, [1] * len(about), MEDIA, seed, epoch, texts_per_medium=1)
    return order[:steps]


@torch.no_grad()
def _mean_embedding(model: AdaptedModel, words: str) -> torch.Tensor:
    ids = model.lm.tokenizer(words, add_special_tokens=False, split_special_tokens=True).input_ids
    return model.lm.embed(torch.tensor(ids, device=model.lm.device)).float().mean(0)
