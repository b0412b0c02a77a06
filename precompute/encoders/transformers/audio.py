"""Audio encoders through transformers: AST, CLAP's audio tower, Whisper's encoder.

Their feature extractors need nothing but numpy. Of a sound longer than the encoder's window, the start is encoded, as
in AST, eP-ALM and Whisper; with `--windows N`, N windows evenly spaced from start to end.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from periscope.errors import PrecomputeError
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.transformers.loading import Place, config_of, load, load_processor, plain
from periscope.precompute.media import decode_sound, decode_start

MOST = 64  # windows
FRAME = 400  # samples; Kaldi's 25 ms at 16 kHz


class Sound(Encoder):
    """Base class. A subclass sets `loader`, the transformers class, and defines `samples`, `shape` and `features_of`.

    pooled and layers: mean over the windows · patches: those of all windows in order, on a grid of (windows * rows,
    columns).
    """

    library = "transformers"
    modality = "audio"
    takes = frozenset({"windows"})
    loader: str
    depth: int

    def __init__(self, place: Place, **choices: Any):
        super().__init__(place.identifier, **choices)
        self.revision = place.revision
        self.windows = self.choices.get("windows", 1)
        if not 1 <= self.windows <= MOST:
            raise PrecomputeError(f"--windows is from 1 to {MOST}, not {self.windows}")
        model = self.load(place)
        self.note_weights(model)
        self.config = config_of(model)
        self._extractor = load_processor(place, "AutoFeatureExtractor")
        self.rate = self._extractor.sampling_rate
        self.preprocessing = {
            "library": "transformers",
            "backend": self.backend(),
            "windows": self.windows,
            **plain({name: value for name, value in self._extractor.to_dict().items() if "filters" not in name}),
        }
        self.model = model
        rows, columns = self.shape()
        self.grid = (self.windows * rows, columns)
        self.model = model.to(self.device, self.dtype)

    def load(self, place: Place) -> Any:
        """The model, in float32."""
        return load(place, self.loader)

    def backend(self) -> str:
        """The library that computes the spectrogram."""
        return "numpy"

    def samples(self) -> int:
        """Samples per window."""
        raise NotImplementedError

    def shape(self) -> tuple[int, int]:
        """(rows, columns) of one window's patches; sets `width`, `depth`."""
        raise NotImplementedError

    def features_of(self, features: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        """Spectrograms `(windows, ...)` -> features of at least `kinds`."""
        raise NotImplementedError

    def decoder(self) -> Callable[[Any], Any]:
        if self.windows > 1:
            return partial(decode_sound, rate=self.rate)
        return partial(decode_start, rate=self.rate, seconds=self.samples() / self.rate)

    def example(self) -> np.ndarray:
        return np.sin(np.arange(self.samples(), dtype=np.float32) / 9)

    def preprocess(self, wave: np.ndarray) -> torch.Tensor:
        """A mono waveform `(samples,)` at the encoder's rate -> `(windows, ...)` float32."""
        length = self.samples()
        starts = np.linspace(0, max(0, len(wave) - length), self.windows).round().astype(int)
        return torch.stack([self.spectrum(wave[start : start + length]) for start in starts])

    def spectrum(self, wave: np.ndarray) -> torch.Tensor:
        """One window's waveform -> its spectrogram, one input of `features_of`."""
        out = self._extractor(wave, sampling_rate=self.rate, return_tensors="pt")
        return out[self.model.main_input_name][0].float()

    def forward(self, inputs: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        found = self.features_of(inputs.flatten(0, 1), kinds)
        windows = {kind: found[kind].unflatten(0, inputs.shape[:2]) for kind in kinds}
        return {kind: each.flatten(1, 2) if kind == "patches" else each.mean(1) for kind, each in windows.items()}

    def check_layer(self) -> None:
        """Raise PrecomputeError unless `patch_layer` is a hidden state."""
        if not -self.depth - 1 <= self.patch_layer <= -1:
            raise PrecomputeError(f"{self.id} has {self.depth} blocks: patch_layer is from {-self.depth - 1} to -1")


class AST(Sound):
    """Audio Spectrogram Transformer, https://arxiv.org/abs/2104.01778.

    pooled: the mean of CLS and distillation token after the final norm · patches: hidden_states[patch_layer] without
    these two, by frequency, then time · layers: the CLS alone after each of the last blocks, through the final norm.
    """

    loader = "ASTModel"
    kinds = frozenset({"pooled", "patches", "layers"})

    def backend(self) -> str:
        from transformers.utils import is_speech_available

        return "torchaudio" if is_speech_available() else "numpy"

    def samples(self) -> int:
        return FRAME + 160 * (self._extractor.max_length - 1)  # Kaldi's frames every 10 ms, at 16 kHz

    def spectrum(self, wave: np.ndarray) -> torch.Tensor:
        return super().spectrum(np.pad(wave, (0, max(0, FRAME - len(wave)))))

    def shape(self) -> tuple[int, int]:
        config = self.model.config
        if (self._extractor.max_length, self._extractor.num_mel_bins) != (config.max_length, config.num_mel_bins):
            raise PrecomputeError(f"--encoder {self.id}: its feature extractor and its config have different lengths")
        self.width, self.patch_size, self.depth = config.hidden_size, config.patch_size, config.num_hidden_layers
        self.blocks = min(self.blocks, self.depth)
        self.check_layer()
        rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        return rows, (config.max_length - config.patch_size) // config.time_stride + 1

    def features_of(self, features: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        out = self.model(features, output_hidden_states=True)
        cls = torch.stack([state[:, 0] for state in out.hidden_states[-self.blocks :]], 1)
        return {
            "pooled": out.pooler_output,
            "patches": out.hidden_states[self.patch_layer][:, 2:],
            "layers": self.model.layernorm(cls),
        }


class Clap(Sound):
    """CLAP's audio tower, https://arxiv.org/abs/2211.06687: a Swin, so only its last feature map is used.

    pooled: projected into the space shared with text, before L2 normalisation · patches: the last map, after the final
    norm, by frequency, then time. With fusion, the path for short sounds.
    """

    loader = "ClapAudioModelWithProjection"
    kinds = frozenset({"pooled", "patches"})
    usual_layer = -1

    def load(self, place: Place) -> Any:
        config = place.config
        if config.model_type == "clap":  # the projection's width stands beside the audio config, not always in it
            config, width = config.audio_config, config.projection_dim
            config.projection_dim = width
        return load(place, self.loader, config=config)

    def samples(self) -> int:
        return self._extractor.nb_max_samples

    def shape(self) -> tuple[int, int]:
        if self.patch_layer != -1:
            raise PrecomputeError(
                f"{self.id} gives the patches after its last block only, not --layer {self.patch_layer}"
            )
        with torch.no_grad():
            found = self._map(self.preprocess(self.example()))
        self.width = found.shape[1]
        rows, columns = found.shape[2:]
        return rows, columns

    def _map(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.audio_model(features, is_longer=self._short(features)).last_hidden_state

    @staticmethod
    def _short(features: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(features), 1, dtype=torch.bool, device=features.device)

    def features_of(self, features: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        out = self.model(features, is_longer=self._short(features))
        return {"pooled": out.audio_embeds, "patches": out.last_hidden_state.flatten(2).transpose(1, 2)}


class Whisper(Sound):
    """Whisper's encoder, https://arxiv.org/abs/2212.04356; sounds are padded to its 30 seconds.

    pooled: the mean over the time that holds sound, after the final norm · patches: hidden_states[patch_layer] in a
    row, those of the padding too; the last of these, -1, has gone through the final norm.

    A mean over the padding as well would say next to nothing of a short sound: of 40 names of a second each, spoken by
    a voice that isn't among those known, the nearest known vector names 9 with it and all 40 without it.
    """

    loader = "WhisperModel"
    kinds = frozenset({"pooled", "patches"})

    def __init__(self, place: Place, **choices: Any):
        super().__init__(place, **choices)
        self.preprocessing = {**self.preprocessing, "pooled": "mean over sound"}

    def as_earlier(self, described: Mapping[str, Any]) -> bool:
        """Descriptions without "pooled" are of vectors that are the mean over the padding, too."""
        another = described.get("class") not in (None, type(self.model).__name__)
        if another or "pooled" in described.get("preprocessing", {}):
            return False
        self.preprocessing = {name: value for name, value in self.preprocessing.items() if name != "pooled"}
        return True

    def load(self, place: Place) -> Any:
        return super().load(place).get_encoder()

    def samples(self) -> int:
        return self._extractor.n_samples

    def shape(self) -> tuple[int, int]:
        self.width, self.depth = self.model.config.d_model, self.model.config.encoder_layers
        self.check_layer()
        return 1, self.model.config.max_source_positions

    def spectrum(self, wave: np.ndarray) -> torch.Tensor:
        """One window's waveform -> `(bands + 1, frames)`; the last row is 1 where a frame holds sound, 0 in padding."""
        out = self._extractor(wave, sampling_rate=self.rate, return_tensors="pt", return_attention_mask=True)
        return torch.cat([out.input_features[0].float(), out.attention_mask.float()])

    def features_of(self, features: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        out = self.model(features[:, :-1], output_hidden_states=True)
        heard = features[:, -1, ::2, None].float()  # the second convolution takes every other frame
        if "pooled" in self.preprocessing:
            pooled = (out.last_hidden_state * heard).sum(1) / heard.sum(1)
        else:
            pooled = out.last_hidden_state.mean(1)
        return {"pooled": pooled, "patches": out.hidden_states[self.patch_layer]}


SOUNDS = {"audio-spectrogram-transformer": AST, "clap": Clap, "clap_audio_model": Clap, "whisper": Whisper}
