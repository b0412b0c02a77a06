"""Soft prompts: learned vectors that stand in the sequence like words (Lester et al. 2021, arXiv 2104.08691)."""

import torch
from torch import nn


class SoftPrompt(nn.Module):
    """`length` learned vectors of the language model's width, started from rows of its embedding.

    The parameter holds the vectors divided by `scale` (the embeddings' RMS), so that one optimizer step moves them
    as far, relative to their size, as it moves the projector's output.
    """

    def __init__(self, length: int, hidden_size: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.vectors = nn.Parameter(torch.randn(length, hidden_size))

    @torch.no_grad()
    def start_from(self, rows: torch.Tensor) -> None:
        """Start from embedded tokens `(length, hidden_size)`, the initialisation that Lester et al. found best."""
        self.vectors.copy_(rows.float() / self.scale)

    def forward(self) -> torch.Tensor:
        """Return the prompt, `(length, hidden_size)` in fp32."""
        return self.vectors * self.scale
