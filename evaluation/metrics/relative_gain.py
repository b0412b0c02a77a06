"""How much of what a control leaves open is answered by looking at the medium."""

from periscope.evaluation.metrics.score import Score

# Scores whose best value isn't 1.
TOPS = {"caption_cider": 10.0, "caption_clipscore": 2.5}


def relative_gain(real: float, control: float) -> float:
    """(real - control) / (1 - control), the share of the control's errors that looking removes; 0 if control is 1."""
    return (real - control) / (1 - control) if control < 1 else 0.0


def gain_over(name: str, real: Score, control: Score | None) -> float | None:
    """The relative gain of the score called `name`.

    For CIDEr and CLIPScore, whose tops nothing reaches, it is the difference. None without a control, and for the share
    of yes, which measures no right answers.
    """
    if control is None or name == "pope_yes":
        return None
    return real.value - control.value if name in TOPS else relative_gain(real.value, control.value)
