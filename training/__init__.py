"""What train.py needs besides the model: data, the order of texts, the memory plan, the run folder."""


class RunError(ValueError):
    """A mistake the user can mend: a run folder that exists, missing words, a resume that can't be exact."""
