"""Soft prompts: learned vectors in the sequence (Lester et al. 2021, arXiv 2104.08691)."""

import torch
from torch import nn


class SoftPrompt(nn.Module):
    """`length` learned vectors of the language model's width, initialised from rows of its embedding.

    The parameter holds the vectors divided by `scale` (the embeddings' RMS), so that one optimizer step moves them as
    far, relative to their size, as it moves the projector's output. With a scale of 1 it holds the vectors themselves,
    and they start as `nn.Embedding` does, from a standard normal: eP-ALM's form.

    With `mlp` they pass through Linear, tanh, Linear of the same width during training (eP-ALM's form, after Li & Liang
    2021, arXiv 2101.00190); `fold` replaces the vectors by the MLP's output.
    """

    def __init__(self, length: int, hidden_size: int, scale: float = 1.0, mlp: bool = False):
        super().__init__()
        self.scale = scale
        self.vectors = nn.Parameter(torch.randn(length, hidden_size))
        self.mlp: nn.Sequential | None = None
        if mlp:
            self.mlp = nn.Sequential(
                nn.Linear(hidden_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, hidden_size)
            )

    @torch.no_grad()
    def start_from(self, embeddings: torch.Tensor) -> None:
        """Initialise from embedded tokens `(length, hidden_size)`, which Lester et al. found best.

        With an MLP, which no vectors pass through unchanged, or a scale of 1 the random initialisation stays.
        """
        if self.mlp is None and self.scale != 1:
            self.vectors.copy_(embeddings.float() / self.scale)

    @torch.no_grad()
    def fold(self) -> None:
        """Replace the vectors by the MLP's output, and remove the MLP."""
        if self.mlp is not None:
            self.vectors.copy_(self.mlp(self.vectors))
            self.mlp = None

    def forward(self) -> torch.Tensor:
        """The prompt, `(length, hidden_size)` in fp32."""
        return (self.vectors if self.mlp is None else self.mlp(self.vectors)) * self.scale
