"""No projector, for a soft prompt that is trained alone."""

import torch

from periscope.adapters.projectors import FeatureShape, Projector, projector


@projector("none", reads="pooled")
class NoTokens(Projector):
    """No vectors: the language model sees the soft prompt only, as in prompt tuning (Lester et al. 2021, arXiv
    2104.08691).
    """

    def __init__(self, features: FeatureShape, hidden_size: int):
        super().__init__()
        self.tokens, self.hidden_size = 0, hidden_size

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """`(batch, width)` to `(batch, 0, hidden_size)`."""
        return pooled.new_zeros(len(pooled), 0, self.hidden_size)
