"""Media in, features out: sources, decoding, frozen encoders, shards."""


class PrecomputeError(ValueError):
    """A mistake the user can mend: missing media, an unknown encoder, a disk too small."""


class MediaError(PrecomputeError):
    """One medium can't be decoded. `reason` is a few words that are equal for equal troubles, `detail` the
    particulars.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail
