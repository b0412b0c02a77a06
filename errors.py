"""The mistakes a user can mend.

`UserError` and its subclasses are shown as one sentence with exit status 1: what was wrong, with which file or value,
and what to do. Any other exception is a bug and shows a traceback.
"""


def first_line(error: BaseException) -> str:
    """What an exception says first, or its name where it says nothing; for the sentence of a `UserError`."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class UserError(ValueError):
    """A mistake the user can mend."""


class AdapterError(UserError):
    """An unknown adapter, a language model that doesn't fit, or a damaged adapter folder."""


class FeatureSetError(UserError):
    """A feature set can't be written or read as asked."""


class PrecomputeError(UserError):
    """Missing media, an unknown encoder, or a disk that is too small."""


class MediaError(PrecomputeError):
    """One file can't be decoded. `reason` is the same few words for the same kind of damage; `detail` is specific."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class UnreadError(MediaError):
    """The disk or the network failed while a file was read: another try may succeed."""


class MachineError(PrecomputeError):
    """The machine is short of what reading any file takes. Ends the run: no file is to blame, and the next would fail
    as well.
    """


class RecipeError(UserError):
    """An unknown recipe, or a TOML file that isn't one."""


class RunError(UserError):
    """A run folder that exists already, missing texts, or a resume that can't be exact."""


class ScoreError(UserError):
    """Predictions that can't be scored as asked, or a scorer that isn't installed."""


class DeviceError(UserError):
    """The device asked for can't be used."""


class RequestError(UserError):
    """A request to the server that can't be answered. `status` is HTTP's."""

    def __init__(self, sentence: str, status: int = 400):
        super().__init__(sentence)
        self.status = status


class ChartError(UserError):
    """A chart can't be drawn."""
