"""The feature set on disk: the contract between the half that encodes media and the half that trains on them."""


class FeatureSetError(ValueError):
    """A feature set can't be written or read as asked; the message names the file and says what to do."""
