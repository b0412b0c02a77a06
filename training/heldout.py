"""Looking at held-out texts while training: the loss with its controls, the tokens' scale, a few answers."""

from collections.abc import Mapping, Sequence

import torch

from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.prompting.boxes import turn_text as in_words
from periscope.evaluation.controls import conditions, evenly, text_losses
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text, Texts
from periscope.training.data.dataset import TextFeatureDataset, TextIndex, question_of
from periscope.training.distributed import ALONE, Ranks

MOST = 256  # eval.py looks at all of them
SAMPLES, SCORED = 8, 32
BLIND_STEPS, BLIND_GAIN = 500, 0.02


def choose_heldout(encoded: TextFeatureDataset, texts: Texts, learn: TextIndex, max_length: int) -> list[Text]:
    """Up to 256 held-out texts of the sorts that are trained on (captions only, when only captions are): of the split
    "heldout", else of "val", else of any other that isn't trained on.
    """
    splits = texts.splits - {"train"}
    split = next((name for name in ("heldout", "val", *sorted(splits)) if name in splits), "")
    outside, sorts = texts.of_split(split), set(learn.asks)
    fitting = [(i, text.media) for i, text in enumerate(outside) if (question_of(text) is not None) in sorts]
    seen = [i for i, media in fitting if media] or [i for i, _ in fitting]  # the loss is of what is seen
    kept = encoded.keep(outside.pick(seen), max_length).texts
    return list(evenly(kept, MOST))


def heldout_losses(
    model: AdaptedModel,
    encoded: TextFeatureDataset,
    texts: Sequence[Text],
    stand_in: Mapping[str, str] | None,
    micro: int,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Loss per target token with the `real` features, with those of `stand_in` (`shuffled`), and with no medium
    (`none`).

    `stand_in` maps each medium to the one whose features it lends; None leaves that control out. Several `ranks` share
    the texts.
    """
    texts = texts[ranks.rank :: ranks.size]
    losses = {}
    for name, rows in text_losses(model, encoded, texts, conditions(("shuffled", "none"), stand_in), micro).items():
        loss, count = ranks.sum(sum(loss for loss, _ in rows), sum(count for _, count in rows))
        losses[name] = loss / count
    return losses


def still_blind(step: int, losses: Mapping[str, float]) -> bool:
    """Whether after 500 steps another medium's features still do as well: a gain under 0.02 nats per token."""
    return step >= BLIND_STEPS and "shuffled" in losses and losses["shuffled"] - losses["real"] < BLIND_GAIN


@torch.no_grad()
def scale_ratio(adapter: Adapter, features: FeatureSet, texts: Sequence[Text]) -> float:
    """The median RMS of the projected tokens over that of the word embeddings."""
    keys = list(dict.fromkeys(key for text in texts[:32] for key in text.media))
    if not keys or not adapter.tokens:
        return 1.0
    device = next(adapter.parameters()).device
    tokens = adapter(features.read_many(keys, adapter.features.kind).to(device))
    return (tokens.pow(2).mean(-1).sqrt().median() / adapter.embedding_rms).item()


def peak_memory(device: str) -> dict[str, int]:
    """{"memory": most bytes that torch had on the GPU so far}, nothing on a CPU."""
    return {"memory": torch.cuda.max_memory_allocated(device)} if torch.device(device).type == "cuda" else {}


def sample_answers(model: AdaptedModel, encoded: TextFeatureDataset, texts: Sequence[Text]) -> list[dict]:
    """What the model says to the same few held-out inputs, 8 to be shown and then others to be scored with these: dicts
    with id, media, prompt, answer, reference, meta.
    """
    shown = evenly(texts, SAMPLES)
    known = {text.id for text in shown}
    chosen = [*shown, *evenly([text for text in texts if text.id not in known], SCORED - len(shown))]
    answers = []
    for i in range(0, len(chosen), SAMPLES):
        part = chosen[i : i + SAMPLES]
        batch = encoded.batch(part, answer=False)
        for text, answer in zip(part, model.generate(batch.texts, batch.features), strict=True):
            reference = in_words(text.turns[-1], model.prompt.template.box_decimals)
            row = {"id": text.id, "media": " ".join(text.media), "prompt": question_of(text) or "", "answer": answer}
            answers.append(row | {"reference": reference, "meta": text.meta})
    return answers


def for_people(row: Mapping, encoded: TextFeatureDataset) -> dict:
    """A row of `sample_answers` as samples.md shows it: the medium by the name of its file, and the prompt that was
    asked, with the template's words around it.
    """
    template = encoded.prompt.template
    if not row["prompt"]:
        prompt = template.caption_prompt or "(caption)"
    else:
        prompt = row["prompt"] if template.style == "chat" else template.question.replace("{}", row["prompt"]).strip()
    names = [str(encoded.features.info(key)["origin"]) for key in row["media"].split()]
    return {"media": " ".join(names), "prompt": prompt, "answer": row["answer"], "reference": row["reference"]}
