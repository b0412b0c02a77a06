"""A prompt as vectors for vLLM: its words, media and soft prompt as the language model reads them.

vLLM's `/v1/completions` takes them in place of words (`--enable-prompt-embeds`), so that any adapter can be used whose
vectors stand among the words, in the form that it was trained with.
"""

import base64
import io
from typing import Any

import torch

from periscope.adapters.model import AdaptedModel
from periscope.errors import AdapterError
from periscope.inference import LoadedModel, Media


@torch.no_grad()
def prompt_vectors(model: LoadedModel, media: Media, question: str | None = None) -> torch.Tensor:
    """The prompt of a question about media, or of their caption: (tokens, hidden_size), in the language model's dtype.

    Raises AdapterError for an adapter that injects into inner layers, and for marks that don't fit the media.
    """
    if any(isinstance(one, AdaptedModel) and one.adapter.injects for one in model.model.models.values()):
        raise AdapterError("an adapter that injects into inner layers has no vectors among the words")
    features = {f"{each.modality}:{i}": each.features for i, each in enumerate(model.encode(media))}
    turns = [] if question is None else [{"role": "user", "content": question}]
    text = model.prompt.segments(turns, list(features), answer=False)
    batch, _ = model.model._splice([text], model.model.slots([text], features), train=False)
    return batch.inputs_embeds[0].cpu()


def completion_request(
    model: LoadedModel, media: Media, question: str | None = None, name: str = "", max_tokens: int = 64
) -> dict[str, Any]:
    """The body of a request to vLLM's `/v1/completions`. name: of the language model there. Raises as
    `prompt_vectors`.
    """
    stream = io.BytesIO()
    torch.save(prompt_vectors(model, media, question).clone(), stream)
    return {
        "model": name or model.model.lm.name,
        "prompt": "",
        "prompt_embeds": base64.b64encode(stream.getvalue()).decode(),
        "max_tokens": max_tokens,
        "temperature": 0,
        "stop_token_ids": list(model.prompt.stop_ids),
    }
