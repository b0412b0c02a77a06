"""Media in, features out: sources, decoding, frozen encoders, shards."""


class PrecomputeError(ValueError):
    """A mistake the user can mend: missing media, an unknown encoder, a disk too small."""
