"""The contract between the two halves: feature sets as webdataset shards with an index, a manifest and texts."""


class FeatureSetError(ValueError):
    """A feature set is missing, damaged or not what was asked for; the message says which and what to do."""
