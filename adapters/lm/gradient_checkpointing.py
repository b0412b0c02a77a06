"""Activation checkpointing of a frozen model: layers keep their input alone, and run again in the backward pass.

Chen et al. 2016, arXiv 1604.06174. transformers' own switch works in training mode only, which a frozen model never is.
"""

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from periscope.adapters.lm.injection import decoder_layers
from periscope.adapters.lm.language_model import LanguageModel


def checkpoint_layers(lm: LanguageModel, every: int = 1) -> int:
    """Let each `every`-th layer of the language model be computed again for the backward pass; 0: none, as it was.

    A layer then keeps one vector a token instead of about 20, for a third more time. Losses and gradients stay the
    same. Returns how many layers do so. Raises AdapterError for a model without a plain stack of layers, unless for 0.
    """
    for layer in lm.model.modules():
        if isinstance(layer.forward, partial) and layer.forward.func is _again:
            layer.forward = layer.forward.args[0]
    chosen = decoder_layers(lm.model)[every - 1 :: every] if every else []
    for layer in chosen:
        layer.forward = partial(_again, layer.forward)
    return len(chosen)


def _again(forward, *given, **named):
    if not torch.is_grad_enabled():
        return forward(*given, **named)
    return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False, **named)
