"""Cross-entropy in the logits' own place is the library's, in value and gradient, and holds less."""

import pytest
import torch
from torch.nn import functional

from periscope.adapters.lm import cross_entropy as module
from periscope.adapters.lm.cross_entropy import cross_entropy


@pytest.mark.parametrize("at_once", [1 << 22, 7 * 50, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_the_librarys_also_where_a_row_has_several_targets(dtype, at_once, monkeypatch):
    monkeypatch.setattr(module, "FP32_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 8, generator=generator).to(dtype)
    head = torch.randn(50, 8, generator=generator).to(dtype)
    rows = torch.tensor([*range(20), 0, 0, 7, 19])
    labels = torch.randint(50, (24,), generator=generator)
    labels[20] = labels[0]  # two texts say the same word after the same stem
    weights = torch.rand(24, generator=generator)

    def gradient(loss_of) -> tuple[torch.Tensor, torch.Tensor]:
        start = hidden.clone().requires_grad_()
        losses = loss_of(functional.linear(start, head))
        (losses * weights).sum().backward()
        return losses.detach(), start.grad

    ours = gradient(lambda logits: cross_entropy(logits, rows, labels))
    theirs = gradient(lambda logits: functional.cross_entropy(logits.float()[rows], labels, reduction="none"))
    for found, want in zip(ours, theirs, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert found.dtype == want.dtype and torch.allclose(found, want, rtol=tolerance, atol=tolerance)
    once = gradient(lambda logits: cross_entropy(logits, rows, torch.where(torch.arange(24) == 20, 1, labels)))
    assert (once[1] - theirs[1]).abs().max() > 0.1


def test_logits_that_something_else_needs_are_refused():
    logits = torch.randn(3, 5, requires_grad=True)
    squashed = logits.tanh()  # its gradient is made from its own value
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cross_entropy(squashed, torch.arange(3), torch.arange(3)).sum().backward()


def test_without_a_gradient_the_logits_stay():
    logits = torch.randn(3, 5)
    before = logits.clone()
    losses = cross_entropy(logits, torch.arange(3), torch.arange(3))
    assert torch.equal(logits, before) and not losses.requires_grad
