"""Requirements for the demo's audio and video encoders, as scores: `python -m studies.probe_media` prints them.

A linear map reads the attributes of every event or moving object from the features, on media that no training uses.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from periscope.demo import clips, sounds
from periscope.evaluation.tasks import clips as clip_words
from periscope.evaluation.tasks import sounds as sound_words
from periscope.evaluation.tasks.scenes import COLOURS, SHAPES
from periscope.precompute.media import decode_clip, decode_sound

BACKBONES = Path(__file__).parents[1] / "demo" / "backbones"
MELS, TIMES = 4, 12  # patches of the spectrogram: rows of pitch, columns of time
SIDE, FRAMES = 4, 8  # patches of a frame: rows and columns; frames of a clip


@dataclass(frozen=True)
class Task:
    """One kind of media and its encoder.

    - `folder`: of the encoder.
    - `places`: where at most one thing can be.
    - `heads`: attributes and their words; the first `named` of them must be right for the score.
    - `slots`: the place of each patch.
    - `draw(seed, n, split)`, `draw_one(rng, split)`: contents of media.
    - `encode(things, rng)`: the bytes of a file.
    - `decode(bytes)`: input of the encoder's own preprocessing.
    - `inputs`: the name of the model's input.
    """

    folder: str
    places: tuple[str, ...]
    heads: tuple[tuple[str, tuple[str, ...]], ...]
    named: int
    slots: tuple[int, ...]
    draw: Callable
    draw_one: Callable
    encode: Callable
    decode: Callable
    inputs: str

    @property
    def sizes(self) -> list[int]:
        """Number of classes of each head, the first of which is an empty place."""
        return [1 + len(words) for _, words in self.heads]

    def labels(self, media: Sequence[list[dict]]) -> torch.Tensor:
        """(media, heads, places) int64: the class of each head at each place, 0 where it is empty."""
        rows = []
        for things in media:
            at = {thing["place"]: thing for thing in things}
            rows.append(
                [
                    [1 + words.index(at[place][name]) if place in at else 0 for place in self.places]
                    for name, words in self.heads
                ]
            )
        return torch.tensor(rows)


AUDIO = Task(
    folder="ast",
    places=sound_words.PLACES,
    heads=(("sound", sound_words.SOUNDS), ("pitch", sound_words.PITCHES), ("loudness", sound_words.LOUDNESSES)),
    named=2,
    slots=tuple(column * 3 // TIMES for _ in range(MELS) for column in range(TIMES)),
    draw=sounds.draw_sounds,
    draw_one=sounds.draw_sound,
    encode=lambda events, rng: sounds.wav(sounds.render(events, rng)),
    decode=lambda data: decode_sound(data, sounds.RATE),
    inputs="input_values",
)
VIDEO = Task(
    folder="timesformer",
    places=clip_words.PLACES,
    heads=(("colour", COLOURS), ("shape", SHAPES), ("way", clip_words.WAYS), ("pace", clip_words.PACES)),
    named=3,
    slots=tuple(row * 2 // SIDE for row in range(SIDE) for _ in range(SIDE * FRAMES)),
    draw=clips.draw_clips,
    draw_one=clips.draw_clip,
    encode=lambda movers, rng: clips.mp4(clips.render(movers, rng)),
    decode=lambda data: decode_clip(data, FRAMES),
    inputs="pixel_values",
)
TASKS = {"audio": AUDIO, "video": VIDEO}


def read(model, task: Task, inputs: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """(the vectors that stand for a medium, each (batch, width): the CLS token after the final norm and, for AST, its
    mean with the distillation token; the patches of the last block but one; those of the last).

    Patches are (batch, tokens, width): AST's row-major over pitch and time, TimeSformer's row-major over the frame with
    all its times for each place.
    """
    found = model(**{task.inputs: inputs}, output_hidden_states=True)
    vectors = [found.last_hidden_state[:, 0]]
    if getattr(found, "pooler_output", None) is not None:
        vectors.append(found.pooler_output)
    before, last = (found.hidden_states[layer][:, -len(task.slots) :] for layer in (-2, -1))
    return vectors, before, last


def by_place(patches: torch.Tensor, task: Task) -> torch.Tensor:
    """The mean of the patches of each place: (batch, tokens, width) to (batch, places, width)."""
    slots = torch.tensor(task.slots)
    return torch.stack([patches[:, slots == place].mean(1) for place in range(len(task.places))], 1)


def load(task: Task, folder: Path | None = None):
    """The demo's encoder in fp32 and its preprocessing, through transformers' own loaders."""
    from transformers import ASTFeatureExtractor, AutoModel, VideoMAEImageProcessorPil

    folder = folder or BACKBONES / task.folder
    kind = ASTFeatureExtractor if task is AUDIO else VideoMAEImageProcessorPil
    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), kind.from_pretrained(folder)


def prepare(task: Task, processor, data: bytes) -> torch.Tensor:
    """The bytes of a file as the model's input, without a batch axis."""
    medium = task.decode(data)
    if task is AUDIO:
        return processor(medium, sampling_rate=sounds.RATE, return_tensors="pt")[task.inputs][0]
    return processor(medium, return_tensors="pt")[task.inputs][0]


@torch.no_grad()
def features(
    model, processor, task: Task, media: list[list[dict]], seed: int, batch: int = 50
) -> dict[str, torch.Tensor]:
    """`pooled` (media, 1, width), as in feature sets, and `patches` (media, places, width) of new files with this
    content.
    """
    rng = random.Random(f"files/{seed}")
    inputs = [prepare(task, processor, task.encode(things, rng)) for things in media]
    pooled, patches = [], []
    for start in range(0, len(inputs), batch):
        vectors, before, _ = read(model, task, torch.stack(inputs[start : start + batch]))
        pooled.append(vectors[-1][:, None])
        patches.append(by_place(before, task))
    return {"pooled": torch.cat(pooled), "patches": torch.cat(patches)}


def linear_probe(
    train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, sizes: list[int], steps: int = 300
) -> torch.Tensor:
    """Fit softmax regressions from features (n, places or 1, width) to labels (n, heads, places), with full-batch Adam
    on standardised features; returns the predicted classes (n_test, heads, places).
    """
    mean, std = train.mean(0, keepdim=True), train.std(0, keepdim=True) + 1e-5
    train, test = (train - mean) / std, (test - mean) / std
    places = labels.shape[-1]
    outputs = sum(sizes) * places // train.shape[1]
    weight = torch.zeros(train.shape[2], outputs, requires_grad=True)
    bias = torch.zeros(outputs, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.02)

    def logits(inputs):
        return (inputs @ weight + bias).reshape(len(inputs), places, sum(sizes)).split(sizes, dim=-1)

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        loss = sum(F.cross_entropy(part.flatten(0, 1), labels[:, n].flatten()) for n, part in enumerate(logits(train)))
        optimizer.zero_grad()
        (loss + 1e-4 * weight.square().sum()).backward()
        optimizer.step()
    with torch.no_grad():
        return torch.stack([part.argmax(-1) for part in logits(test)], dim=1)


def media_scores(model, processor, task: Task, seed: int = 0, train: int = 3000, test: int = 300) -> dict[str, float]:
    """Share of media for which a linear probe reads the first `named` attributes of everything at its place (`_all`:
    all attributes), with nothing missing or added: from pooled features and from patches, on new media and new pairs.
    """
    found, labels = {}, {}
    for split, n in {"train": train, "heldout": test, "new_pairs": test}.items():
        media = task.draw(seed + 90000, n, split)
        found[split], labels[split] = features(model, processor, task, media, seed + 90000), task.labels(media)
    scores = {}
    for kind in ("pooled", "patches"):
        tests = torch.cat([found[split][kind] for split in ("heldout", "new_pairs")])
        said = linear_probe(found["train"][kind], labels["train"], tests, task.sizes)
        for split, part in zip(("heldout", "new_pairs"), said.split(test), strict=True):
            same = (part == labels[split]).all(-1)
            scores[f"{kind}_{split}"] = round(same[:, : task.named].all(-1).float().mean().item(), 4)
            scores[f"{kind}_{split}_all"] = round(same.all(-1).float().mean().item(), 4)
    return scores


def main() -> None:
    for name, task in TASKS.items():
        model, processor = load(task)
        scores = media_scores(model, processor, task)
        print(name, json.dumps({kind: round(value, 4) for kind, value in scores.items()}))


if __name__ == "__main__":
    main()
