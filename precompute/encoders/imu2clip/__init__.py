"""IMU2CLIP's encoder of motion (Moon et al. 2022, arXiv 2210.14395; https://github.com/facebookresearch/imu2clip),
whose vectors AnyMAL reads. Its code trains it (`MW2StackRNNPooling`); weights aren't published there.
"""

from collections.abc import Callable, Collection
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from periscope.errors import PrecomputeError
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.folders import find_folder
from periscope.precompute.encoders.registry import register
from periscope.precompute.media import decode_imu
from periscope.precompute.media.imu import CHANNELS, RATE, SECONDS
from periscope.weights import load_state

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
LAST = "net.5.weight_hh_l0"  # a weight whose name tells where the encoder's begin


class _Block(nn.Module):
    """A convolution over time with gaps of one, and the maximum of every three values."""

    def __init__(self, kernel: torch.Size):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(kernel[1], kernel[0], kernel[2], dilation=2, bias=False), nn.MaxPool1d(3))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.net(values)


class MotionEncoder(nn.Module):
    """`(batch, 6, samples)` -> `(batch, width)`: three convolutions, and a GRU's last state.

    The GRU reads the channels one after another, each as a row of moments, so that the number of samples is fixed: its
    input size, 32 moments, comes of 1,000 samples. shapes: of the weights, by their names in IMU2CLIP's code.
    """

    def __init__(self, shapes: dict[str, torch.Size]):
        super().__init__()
        blocks = [_Block(shapes[f"net.{number}.net.0.weight"]) for number in (1, 2, 3)]
        channels, (rows, moments) = shapes["net.3.net.0.weight"][0], shapes["net.5.weight_ih_l0"]
        self.net = nn.Sequential(
            nn.GroupNorm(2, len(CHANNELS)),
            *blocks,
            nn.GroupNorm(4, channels),
            nn.GRU(moments, rows // 3, batch_first=True),
        )

    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        return self.net(motion)[1][0]


@register("imu2clip")
class Imu2Clip(Encoder):
    """identifier: a folder with the weights, one .safetensors, .pt or .ckpt file as IMU2CLIP's code saves it.

    pooled: the encoder's vector, before any normalisation.
    """

    modality = "imu"
    usual_layer = -1
    preprocessing = MappingProxyType(
        {"rate": RATE, "seconds": SECONDS, "channels": list(CHANNELS), "resampling": "linear", "backend": "numpy"}
    )

    def __init__(self, identifier: str = "", **choices: Any):
        super().__init__(identifier, **choices)
        state = _weights(identifier)
        try:
            model = MotionEncoder({name: tensor.shape for name, tensor in state.items()})
            model.load_state_dict(state)
            with torch.no_grad():
                self.width = model(torch.zeros(1, len(CHANNELS), RATE * SECONDS)).shape[1]
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise PrecomputeError(
                f"--encoder imu2clip:{identifier}: these aren't weights of IMU2CLIP's encoder for {SECONDS} seconds "
                f"({' '.join(str(error).split())[:120]})"
            ) from error
        model.eval().requires_grad_(False)
        self.note_weights(model)
        self.model = model.to(self.device, self.dtype)

    def decoder(self) -> Callable[[Any], Any]:
        return decode_imu

    def example(self) -> np.ndarray:
        moments = np.arange(RATE * SECONDS, dtype=np.float32) / 30
        return np.stack([np.sin(moments * (1 + number)) for number in range(len(CHANNELS))])

    def preprocess(self, motion: np.ndarray) -> torch.Tensor:
        """A window `(6, 1000)` as it is."""
        return torch.from_numpy(np.ascontiguousarray(motion, dtype=np.float32))

    def forward(self, inputs: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        return {"pooled": self.model(inputs)}


def _weights(identifier: str) -> dict[str, torch.Tensor]:
    """The encoder's weights in a folder, by their names in IMU2CLIP's code. Raises PrecomputeError without any."""
    folder = find_folder(identifier)
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES) if folder else []
    if len(files) != 1:
        held = f"{folder} holds {len(files)} of them" if folder else f"there is no folder {identifier or 'named'}"
        raise PrecomputeError(
            "--encoder imu2clip:FOLDER takes a folder with one file of weights, as IMU2CLIP's code saves them, and "
            f"{held}"
        )
    content = load_state(files[0], PrecomputeError)
    begins = next((name[: -len(LAST)] for name in content if name.endswith(LAST)), None)
    if begins is None:
        raise PrecomputeError(f"--encoder imu2clip:{identifier}: {files[0].name} has no weight called {LAST}")
    return {
        name.removeprefix(begins): tensor.float()
        for name, tensor in content.items()
        if name.startswith(f"{begins}net.")
    }
