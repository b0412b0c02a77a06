"""Pretrain the demo's audio and video encoders from scratch: `python -m studies.pretrain_media --only audio`.

Writes demo/backbones/ast (transformers' ASTModel) and demo/backbones/timesformer (TimesformerModel), each with its
preprocessing and a card. Both see media of the split "train" only. They are trained through linear heads that read what
is heard or seen at each place from their features; the heads are then discarded.
"""

import argparse
import platform
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from periscope.demo import sounds
from studies.pretrain import log, optimizer_for, save, schedule
from studies.probe_media import AUDIO, BACKBONES, FRAMES, MELS, SIDE, TASKS, TIMES, VIDEO, Task, media_scores, read

PATCH = 16
VECTOR_NOISE = 0.5
MEAN, STD = [0.88] * 3, [0.2] * 3
TOLD = {"audio": ("sounds", "recordings"), "video": ("clips", "clips")}


def build(task: Task) -> PreTrainedModel:
    """The encoder with random weights."""
    from transformers import ASTConfig, ASTModel, TimesformerConfig, TimesformerModel

    common: dict[str, Any] = {
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "patch_size": PATCH,
        "initializer_range": 0.05,
    }
    if task is AUDIO:
        common |= {"num_mel_bins": MELS * PATCH, "max_length": TIMES * PATCH}
        common |= {"frequency_stride": PATCH, "time_stride": PATCH}
        model: PreTrainedModel = ASTModel(ASTConfig(hidden_size=192, intermediate_size=384, **common))
    else:
        common |= {"image_size": SIDE * PATCH, "num_frames": FRAMES}
        model = TimesformerModel(TimesformerConfig(hidden_size=144, intermediate_size=432, **common))
    for name in ("position_embeddings",) if task is AUDIO else ("position_embeddings", "time_embeddings"):
        torch.nn.init.normal_(model.get_parameter(f"embeddings.{name}"), std=0.3)
    return model


def processor_for(task: Task, mean=None, std=None):
    """The preprocessing that is saved with the encoder. Without mean and deviation, sounds aren't scaled."""
    from transformers import ASTFeatureExtractor, VideoMAEImageProcessorPil

    if task is AUDIO:
        scale = {"mean": 0.0, "std": 0.5} if mean is None else {"mean": mean, "std": std}
        return ASTFeatureExtractor(
            sampling_rate=sounds.RATE, num_mel_bins=MELS * PATCH, max_length=TIMES * PATCH, **scale
        )
    side = SIDE * PATCH
    return VideoMAEImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=MEAN, image_std=STD
    )


def draw_pool(task: Task, seed: int, n: int) -> tuple[torch.Tensor, list[list[dict]]]:
    """`n` training media as their encoder's input before scaling, and their content: filter banks (n, frames, mels)
    float16, or all frames (n, frames of the file, 3, side, side) uint8.
    """
    from periscope.demo import clips
    from periscope.precompute.media import decode_clip

    rng = random.Random(f"pool/{task.folder}/{seed}")
    media = [task.draw_one(rng, "train") for _ in range(n)]
    if task is AUDIO:
        extract = processor_for(task)
        pool = torch.empty(n, TIMES * PATCH, MELS * PATCH, dtype=torch.float16)
        for row, things in enumerate(media):
            wave = task.decode(task.encode(things, rng))
            pool[row] = extract(wave, sampling_rate=sounds.RATE, return_tensors="pt")[task.inputs][0]
        return pool, media
    side = SIDE * PATCH
    extract = processor_for(task)
    pool = torch.empty(n, clips.FRAMES, 3, side, side, dtype=torch.uint8)
    for row, things in enumerate(media):
        frames = decode_clip(task.encode(things, rng), clips.FRAMES)
        pool[row] = extract(frames, do_rescale=False, do_normalize=False, return_tensors="pt")[task.inputs][0]
    return pool, media


def augment_sounds(banks: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """Filter banks (n, frames, mels) scaled as AST's extractor does, each shifted by up to 3 frames, with its level
    varied by up to a decibel and a little noise.
    """
    banks = banks.float()
    banks = torch.stack(
        [bank.roll(shift, 0) for bank, shift in zip(banks, torch.randint(-3, 4, (len(banks),)).tolist(), strict=True)]
    )
    banks = banks + 0.23 * (2 * torch.rand(len(banks), 1, 1) - 1) + 0.2 * torch.randn_like(banks)
    return (banks - mean) / (2 * std)


def augment_clips(frames: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All frames (n, 2 * FRAMES, 3, side, side) uint8 to every second one as normalised floats, each clip shifted by up
    to 2 pixels, with varied brightness and contrast, half of them reversed; and the labels of the result.
    """
    n, side = len(frames), frames.shape[-1]
    way = [name for name, _ in VIDEO.heads].index("way")
    opposite = torch.tensor([0, 2, 1, 4, 3, 5])  # nothing, left, right, up, down, nowhere
    padded = F.pad(frames.flatten(1, 2).float() / 255, (2, 2, 2, 2), mode="replicate").unflatten(1, (-1, 3))
    found, labels = [], labels.clone()
    for row, (clip, (y, x, phase, back)) in enumerate(zip(padded, torch.randint(0, 60, (n, 4)).tolist(), strict=True)):
        y, x = y % 5, x % 5
        clip = clip[phase % 2 :: 2, :, y : y + side, x : x + side]
        if back % 2:
            clip = clip.flip(0)
            labels[row, way] = opposite[labels[row, way]]
        found.append(clip)
    pixels = torch.stack(found)
    pixels = pixels * (1 + 0.08 * torch.randn(n, 1, 1, 1, 1)) + 0.03 * torch.randn(n, 1, 3, 1, 1)
    pixels = (pixels + 0.01 * torch.randn_like(pixels)).clamp(0, 1)
    return (pixels - MEAN[0]) / STD[0], labels


def place_loss(logits: torch.Tensor, labels: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Cross-entropy of logits (n, places or patches, classes of all heads) against labels (n, heads, the same); empty
    places weigh 0.3.
    """
    loss = torch.zeros(())
    for head, part in enumerate(logits.float().split(sizes, dim=-1)):
        truth = labels[:, head].flatten()
        weight = torch.where(truth > 0, 1.0, 0.3)
        loss = loss + (F.cross_entropy(part.flatten(0, 1), truth, reduction="none") * weight).sum() / weight.sum()
    return loss / len(sizes)


class Heads(torch.nn.Module):
    """Linear readouts of what is at each place: from each vector, from each patch of the last block and of the one
    before it, and from the mean of the latter's patches. Vectors are read under noise; see studies.pretrain.Heads.
    """

    def __init__(self, task: Task, width: int, vectors: int):
        super().__init__()
        self.task = task
        classes, places = sum(task.sizes), len(task.places)
        self.vectors = torch.nn.ModuleList(torch.nn.Linear(width, places * classes) for _ in range(vectors))
        self.patches = torch.nn.Linear(width, classes)
        self.last = torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, classes))
        self.mean = torch.nn.Linear(width, places * classes)
        self.register_buffer("slots", torch.tensor(task.slots))

    def forward(self, vectors, before, last, labels) -> dict[str, torch.Tensor]:
        task, places, pooled = self.task, len(self.task.places), torch.zeros(())
        for head, vector in zip(self.vectors, vectors, strict=True):
            noise = VECTOR_NOISE * vector.detach().square().mean().sqrt() * torch.randn_like(vector)
            read = head(vector + noise).unflatten(1, (places, -1))
            pooled = pooled + place_loss(read, labels, task.sizes) / len(vectors)
        spread = labels[:, :, self.slots]
        return {
            "pooled": pooled,
            "patches": place_loss(self.patches(before), spread, task.sizes),
            "last": place_loss(self.last(last), spread, task.sizes),
            "mean": place_loss(self.mean(before.mean(1)).unflatten(1, (places, -1)), labels, task.sizes),
        }


def optimizers_for(both: torch.nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the blocks' matrices (https://kellerjordan.github.io/posts/muon), AdamW for everything else."""
    named = list(both.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and ".layer" in name]
    others = torch.nn.ParameterList([p for name, p in named if not (p.ndim == 2 and ".layer" in name)])
    muon = torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return muon, optimizer_for(others, 1e-3, 0.05)


WEIGHTS = {"pooled": 1.0, "patches": 0.5, "last": 0.25, "mean": 0.5}


def pretrain(name: str, args) -> None:
    """Train one encoder; its folder is written at every probe."""
    task, began = TASKS[name], time.time()
    torch.manual_seed(args.seed)
    folder = args.out / task.folder
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "log.jsonl"
    record.unlink(missing_ok=True)
    count = args.media or {"audio": 12000, "video": 12000}[name]
    pool, media = draw_pool(task, args.seed + 1, count)
    labels = task.labels(media)
    mean, std = round(pool.float().mean().item(), 3), round(pool.float().std().item(), 3)
    processor = processor_for(task, mean, std) if task is AUDIO else processor_for(task)
    processor.save_pretrained(folder)
    log(record, media=count, seconds=time.time() - began)
    model = build(task)
    heads = Heads(task, model.config.hidden_size, 2 if task is AUDIO else 1)
    both = torch.nn.ModuleList([model, heads])
    optimizers = optimizers_for(both)
    rates = [optimizer.param_groups[0]["lr"] * args.rate for optimizer in optimizers]
    steps, batch = args.steps or {"audio": 1000, "video": 1800}[name], args.batch or {"audio": 64, "video": 32}[name]
    order: list[int] = []
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(count).tolist()
        chosen, order = order[:batch], order[batch:]
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step, steps, 100)
        if task is AUDIO:
            inputs, truth = augment_sounds(pool[chosen], mean, std), labels[chosen]
        else:
            inputs, truth = augment_clips(pool[chosen], labels[chosen])
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            losses = heads(*read(model, task, inputs), truth)
        loss = sum(WEIGHTS[part] * value for part, value in losses.items())
        both.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 50 == 0:
            log(
                record,
                step=step + 1,
                seconds=time.time() - began,
                **{part: value.item() for part, value in losses.items()},
            )
        if (step + 1) % args.probe_every == 0 or step + 1 == steps:
            state = {part: tensor.half() for part, tensor in model.state_dict().items()}
            model.config.architectures, model.config.dtype = [type(model).__name__], torch.float16
            model.config.save_pretrained(folder)
            save(state, folder / "model.safetensors")
            kept = {part: tensor.clone() for part, tensor in model.state_dict().items()}
            model.load_state_dict(state)
            model.eval()
            scores = media_scores(model, processor, task, train=args.probe_media)
            model.train()
            model.load_state_dict(kept)
            log(record, step=step + 1, probe=scores)
            write_card(folder, name, args, (step + 1, steps), batch, count, time.time() - began, scores, model)


def write_card(
    folder: Path, name: str, args, done: tuple[int, int], batch: int, count: int, seconds: float, scores, model
):
    """The model's README: what it is, how it was made, its scores."""
    room, things = TOLD[name]
    parameters = sum(p.numel() for p in model.parameters())
    step, steps = done
    lines = [
        f"# The demo's encoder of {room}",
        "",
        f"Pretrained from scratch by `python -m studies.pretrain_media --only {name}`. It knows the demo's {room} and",
        "nothing else. MIT licence, as the project.",
        "",
        f'- Data: {count:,} drawn {things} (`demo/{room}.py`, split "train"), read as files; none of the held-out',
        "  sets, no pair of `NEW_PAIRS`",
        f"- {type(model).__name__}, {parameters:,} parameters, stored in fp16",
        f"- {step:,} of {steps:,} steps of {batch}, seed {args.seed}, Muon and AdamW, bf16 autocast; heads",
        "  read each attribute at each place off its features and were then thrown away",
        f"- {seconds / 60:.0f} minutes on {args.threads} thread(s), {platform.machine()}, torch {torch.__version__}",
        "",
        "Probe scores (`python -m studies.probe_media`), linear, on media that no training shows: the share in which "
        + " and ".join(head for head, _ in TASKS[name].heads[: TASKS[name].named]),
        "(`_all`: every attribute) of everything are read at its place.",
        "",
        "| | |",
        "| --- | --- |",
        *[f"| {kind} | {value:.4f} |" for kind, value in scores.items()],
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=tuple(TASKS), help="train this one alone (default: both)")
    parser.add_argument("--out", type=Path, default=BACKBONES, help="folder that gets ast/ and timesformer/")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and weights")
    parser.add_argument("--steps", type=int, help="optimizer steps (default 1000 for sounds, 1800 for clips)")
    parser.add_argument("--batch", type=int, help="media a step (default 64 sounds, 32 clips)")
    parser.add_argument("--rate", type=float, default=1.0, help="times the usual learning rate")
    parser.add_argument("--media", type=int, help="training media (default 12000)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--probe-every", type=int, default=300, help="steps between probes, which also save")
    parser.add_argument("--probe-media", type=int, default=2000, help="media a probe is fitted to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in TASKS:
        if args.only in (None, name):
            pretrain(name, args)


if __name__ == "__main__":
    main()
