"""The adapter and the frozen language model: projector, soft prompt, splice, loss, generation, checkpoint."""


class AdapterError(ValueError):
    """A mistake the user can mend: an unknown adapter, a language model that doesn't fit, a damaged adapter folder."""
