"""How well a caption fits its image: CLIP's cosine similarity, by the text encoder of the model behind the features.

LAION-400M dropped pairs below 0.3 (https://arxiv.org/abs/2111.02114, with ViT-B/32); the right threshold depends on the
model.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.folders import find_folder
from periscope.precompute.encoders.hub import no_remote_code
from periscope.precompute.sources import Words
from periscope.shards.texts import caption_request

BATCH = 256  # captions at once


class TextTower:
    """Encodes captions into the space of an encoder's pooled features. Raises PrecomputeError for an encoder without a
    text encoder here; those of open_clip have one.
    """

    def __init__(self, encoder: Encoder):
        self._model, self._tokens = _text_tower(encoder)
        self._device = encoder.device

    @torch.no_grad()
    def vectors(self, captions: Sequence[str]) -> torch.Tensor:
        """Captions -> `(captions, width)` float32, L2-normalised."""
        found = [torch.empty(0)]
        for first in range(0, len(captions), BATCH):
            tokens = self._tokens(list(captions[first : first + BATCH])).to(self._device)
            found.append(self._model.encode_text(tokens, normalize=True).float().cpu())
        return torch.cat(found[1:] or found)


class Similarity:
    """Compares captions with pooled features.

    encoder: of the family open_clip · words: all texts of the collection · threshold: the lowest cosine that is kept ·
    apart: whether `encoder` isn't the one whose features are stored; it then encodes the images for this alone.
    Raises PrecomputeError for an encoder without a text encoder.
    """

    def __init__(self, encoder: Encoder, words: Iterable[Words], threshold: float, apart: bool = False):
        self.threshold, self._tower = threshold, TextTower(encoder)
        self.judge = encoder if apart else None
        self._cosines: dict[tuple[str, str], float] = {}
        self._captions: dict[str, list[str]] = {}
        self._wordy: set[str] = set()
        for text in words:
            if (caption := caption_of(text)) is None:
                self._wordy.update(text.media)
            else:
                self._captions.setdefault(text.media[0], []).append(caption)

    def reason(self) -> str:
        """Why a medium or a text is left out."""
        return f"unlike its words (cosine below {self.threshold:g})"

    def compare(self, origins: Sequence[str], pooled: torch.Tensor) -> None:
        """Compute and keep the cosines of all captions of these media with their features `(batch, width)`."""
        rows = [(i, origin, caption) for i, origin in enumerate(origins) for caption in self._captions.get(origin, [])]
        pictures = torch.nn.functional.normalize(pooled.float(), dim=-1)
        for first in range(0, len(rows), BATCH):
            part = rows[first : first + BATCH]
            texts = self._tower.vectors([row[2] for row in part])
            cosines = (pictures[[row[0] for row in part]] * texts).sum(-1).tolist()
            self._cosines |= {(origin, text): value for (_, origin, text), value in zip(part, cosines, strict=True)}

    def compared(self, origin: str) -> bool:
        """Whether all captions of this medium have been compared."""
        return all((origin, caption) in self._cosines for caption in self._captions.get(origin, []))

    def check(self, origin: str) -> None:
        """Raise MediaError when a medium has captions, no other words, and every caption's cosine is too low."""
        if origin in self._wordy or origin not in self._captions:
            return
        best = max(self._cosines[origin, caption] for caption in self._captions[origin])
        if best < self.threshold:
            raise MediaError(self.reason(), f"{best:.3f} at best")

    def sort(self, words: Iterable[Words], there: set[str]) -> tuple[list[Words], list[dict]]:
        """(texts that stay, {"origin", "reason", "detail"} of the captions that don't). Only captions of media in
        `there` are judged.
        """
        kept, unlike = [], []
        for text in words:
            caption = caption_of(text)
            compared = caption is not None and text.media[0] in there
            cosine = self._cosines[text.media[0], caption or ""] if compared else self.threshold
            if cosine >= self.threshold:
                kept.append(text)
            else:
                detail = f"{cosine:.3f}: {caption}"
                unlike.append({"origin": text.media[0], "reason": f"caption {self.reason()}", "detail": detail})
        return kept, unlike


def caption_of(text: Words) -> str | None:
    """The caption, if a text is one, alone or after one of LLaVA's requests for it; None for a question, a
    conversation, or a text about several media.
    """
    lone = len(text.media) == 1 and len(text.turns) == 1 and text.turns[0]["role"] == "assistant"
    requested = caption_request(text.turns, len(text.media)) is not None
    return text.turns[-1]["content"] if lone or requested else None


def _text_tower(encoder: Encoder) -> tuple[Any, Callable[[list[str]], torch.Tensor]]:
    if encoder.library != "open_clip":
        raise PrecomputeError(
            f"words are compared with pictures by a text tower, and encoder {encoder.name} has no text tower here: "
            "take one of open_clip, as clip-l-336"
        )
    import open_clip

    from periscope.precompute.encoders.open_clip import create

    model, _, _ = create(open_clip, encoder.id)
    if not hasattr(model, "encode_text"):
        raise PrecomputeError(f"encoder {encoder.name} has no text tower that words could be compared by")
    folder = find_folder(encoder.id)
    name = f"local-dir:{folder.resolve()}" if folder else encoder.id
    name = name if name.startswith(("local-dir:", "hf-hub:")) else name.partition("/")[0]
    try:
        with no_remote_code():
            tokens = open_clip.get_tokenizer(name)
    except Exception as error:  # the library and the Hub's client raise many kinds
        raise PrecomputeError(f"the tokenizer of {encoder.name} can't be had ({error})") from error
    with contextlib.suppress(AttributeError):
        del model.visual
    return model.eval().requires_grad_(False).to(encoder.device), tokens
