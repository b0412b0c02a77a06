"""Pretrains the demo's encoder without words from nothing on drawn scenes: `python -m demo.pretrain_dino`.

Writes demo/backbones/dino (transformers' Dinov2Model) with its preprocessing and a card. It sees pictures of the split
"train" alone and no word or label about them. A student sees part of each picture and learns to say of the patches it
doesn't see what a teacher, its moving average, says of them (iBOT, https://arxiv.org/abs/2111.07832, with assignments
to prototypes balanced by Sinkhorn-Knopp as in DINOv2, https://arxiv.org/abs/2304.07193), and what colours they have
(https://arxiv.org/abs/2111.09886). Its CLS token learns to redraw a picture seen whole.

DINO's own task, that two crops' CLS tokens agree, was tried and learnt nothing in 350 steps, with and without norms in
the head: what two crops of these scenes share most easily is the tint of the background.
"""

import argparse
import copy
import math
import platform
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from demo.pretrain import IMAGE, MEAN, STD, draw_pool, log, save, schedule
from demo.pretrain_media import optimizers_for
from demo.probe import BACKBONES, by_cell, cell_labels, linear_probe, pictures
from demo.scenes import draw_scenes

PATCH, WIDTH, LAYERS = 16, 192, 4
REDRAWN = 48  # pixels of a side
PROTOTYPES = 512
STUDENT_HEAT, TEACHER_HEAT = 0.1, 0.05


def build():
    """The encoder with random weights."""
    from transformers import Dinov2Config, Dinov2Model

    model = Dinov2Model(
        Dinov2Config(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            mlp_ratio=2,
            image_size=IMAGE,
            patch_size=PATCH,
            initializer_range=0.05,
            layerscale_value=1.0,
        )
    )
    torch.nn.init.normal_(model.embeddings.position_embeddings, std=0.3)
    return model


def processor_for():
    """The preprocessing that is saved with the encoder."""
    from transformers import BitImageProcessor

    side = {"height": IMAGE, "width": IMAGE}
    return BitImageProcessor(
        size={"shortest_edge": IMAGE}, crop_size=side, image_mean=list(MEAN), image_std=list(STD), resample=3
    )


class Head(torch.nn.Module):
    """Scores of features (n, width) against prototypes, as cosines: (n, prototypes). Its norms over the n keep them
    apart: without, all are alike at the start, and stay so."""

    def __init__(self, prototypes: int = PROTOTYPES):
        super().__init__()
        inner, outer = torch.nn.BatchNorm1d(384), torch.nn.BatchNorm1d(96, affine=False)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 384), inner, torch.nn.GELU(), torch.nn.Linear(384, 96), outer
        )
        self.prototypes = torch.nn.Parameter(torch.randn(prototypes, 96))

    def forward(self, features):
        return F.normalize(self.mlp(features).float(), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class Network(torch.nn.Module):
    """The encoder with what is thrown away: a head for its patches, and what draws pixels from a patch and from the CLS
    token; student and teacher are one each."""

    def __init__(self):
        super().__init__()
        self.encoder = build()
        self.head = Head()
        self.pixels = torch.nn.Linear(WIDTH, 3 * PATCH * PATCH)
        self.redraw = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 512), torch.nn.GELU(), torch.nn.Linear(512, 3 * REDRAWN * REDRAWN)
        )

    def forward(self, pixels, masked=None):
        """(batch, 3, side, side), masked (batch, tokens) bool -> (CLS tokens, patches), both after the final norm."""
        found = self.encoder(pixel_values=pixels, bool_masked_pos=masked).last_hidden_state
        return found[:, 0], found[:, 1:]


@torch.no_grad()
def balanced(scores: torch.Tensor, rounds: int = 3) -> torch.Tensor:
    """Cosines (n, prototypes) to soft assignments, rows that sum to 1, in which all prototypes are used about equally
    (https://arxiv.org/abs/1306.0895, as in DINOv2)."""
    shares = (scores / TEACHER_HEAT).exp()
    for _ in range(rounds):
        shares = shares / shares.sum(0, keepdim=True)
        shares = shares / shares.sum(1, keepdim=True)
    return shares


def crops(pixels: torch.Tensor, side: int, least: float, most: float) -> torch.Tensor:
    """uint8 pixels (n, 3, 96, 96) to normalised float crops (n, 3, side, side), each of `least` to `most` of the area,
    anywhere, in a light of another brightness and tint, so that the background doesn't tell which picture it is; never
    mirrored, and what is coloured keeps its name."""
    n = len(pixels)
    share = torch.empty(n).uniform_(least, most).sqrt()
    shift = (1 - share) * torch.empty(2, n).uniform_(-1, 1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = share
    theta[:, 0, 2], theta[:, 1, 2] = shift
    grid = F.affine_grid(theta, (n, 3, side, side), align_corners=False)
    found = F.grid_sample(pixels.float() / 255, grid, mode="bilinear", padding_mode="border", align_corners=False)
    found = found * torch.empty(n, 3, 1, 1).uniform_(0.82, 1.0) + 0.04 * torch.randn(n, 1, 1, 1)
    found = (found + 0.02 * torch.rand(n, 1, 1, 1) * torch.randn_like(found)).clamp(0, 1)
    return (found - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def masks(n: int, tokens: int, rng: random.Random) -> torch.Tensor:
    """(n, tokens) bool: half of the pictures have 15% to 60% of their patches masked, the others none."""
    found = torch.zeros(n, tokens, dtype=torch.bool)
    for row in range(0, n, 2):
        found[row, rng.sample(range(tokens), round(tokens * rng.uniform(0.15, 0.6)))] = True
    return found


def cross(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the teacher's assignments (n, prototypes) under the student's cosines."""
    return -(teacher * (student / STUDENT_HEAT).log_softmax(-1)).sum(-1).mean()


def in_patches(pixels: torch.Tensor) -> torch.Tensor:
    """(batch, 3, side, side) to (batch, tokens, 3 * PATCH * PATCH), row-major."""
    return F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)


@torch.no_grad()
def features(model, processor, images: list, batch: int = 100) -> dict[str, torch.Tensor]:
    """`pooled` (images, width), the CLS token after the final norm, and `patches` (images, tokens, width) of the last
    block but one."""
    pooled, patches = [], []
    for start in range(0, len(images), batch):
        pixels = processor(images[start : start + batch], return_tensors="pt")["pixel_values"]
        found = model(pixel_values=pixels, output_hidden_states=True)
        pooled.append(found.last_hidden_state[:, 0])
        patches.append(found.hidden_states[-2][:, 1:])
    return {"pooled": torch.cat(pooled), "patches": torch.cat(patches)}


def dino_scores(model, processor, seed: int = 0, train: int = 3000, test: int = 300) -> dict[str, float]:
    """As demo.probe.encoder_scores: the share of scenes for which a linear probe reads every object's colour and shape
    (as `_all`, size too) at its place; and, as `_objects`, the share of objects so read."""
    sets = {"train": train, "heldout": test, "new_pairs": test}
    found, labels = {}, {}
    for split, n in sets.items():
        scenes = draw_scenes(seed + 90000, n, split)
        found[split] = features(model, processor, pictures(scenes, seed + 90000))
        labels[split] = torch.tensor([cell_labels(objects) for objects in scenes])
    scores = {}
    for kind in ("pooled", "patches"):
        shaped = {split: by_cell(f[kind]) if kind == "patches" else f[kind][:, None] for split, f in found.items()}
        said = linear_probe(shaped["train"], labels["train"], torch.cat([shaped["heldout"], shaped["new_pairs"]]))
        for split, part in zip(("heldout", "new_pairs"), said.split(test), strict=True):
            same, there = part == labels[split], labels[split][:, 0] > 0
            scores[f"{kind}_{split}"] = same[:, :2].all(-1).all(-1).float().mean().item()
            scores[f"{kind}_{split}_all"] = same.all(-1).all(-1).float().mean().item()
            scores[f"{kind}_{split}_objects"] = same[:, :2].all(1)[there].float().mean().item()
    return {name: round(value, 4) for name, value in scores.items()}


def load(folder: Path = BACKBONES / "dino"):
    """The demo's encoder without words in fp32 and its preprocessing, through transformers' own loaders."""
    from transformers import AutoModel, BitImageProcessor

    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), BitImageProcessor.from_pretrained(folder)


def pretrain(args) -> None:
    """Trains student and teacher; writes the teacher at every probe, so that nothing is lost."""
    began = time.time()
    torch.manual_seed(args.seed)
    rng = random.Random(f"dino/{args.seed}")
    folder = args.out / "dino"
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "log.jsonl"
    record.unlink(missing_ok=True)
    processor = processor_for()
    processor.save_pretrained(folder)
    pixels, _ = draw_pool(args.seed + 1, args.pictures, 1)
    log(record, pictures=len(pixels), seconds=time.time() - began)
    student = Network()
    teacher = copy.deepcopy(student).requires_grad_(False)
    random_scores = dino_scores(teacher.encoder.eval(), processor)
    log(record, step=0, probe=random_scores)
    optimizers = optimizers_for(student)
    rates = [optimizer.param_groups[0]["lr"] * args.rate for optimizer in optimizers]
    tokens = (IMAGE // PATCH) ** 2
    order: list[int] = []
    for step in range(args.steps):
        if len(order) < args.batch:
            order = torch.randperm(len(pixels)).tolist()
        chosen, order = order[: args.batch], order[args.batch :]
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step, args.steps, 100)
        views = crops(pixels[chosen], IMAGE, 0.8, 1.0)
        masked = masks(args.batch, tokens, rng)
        part = masked.any(1)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            with torch.no_grad():
                seen = balanced(teacher.head(teacher(views[part])[1][masked[part]]))
            cls, guessed = student(views, masked)
            guessed = guessed[masked]
            said, drawn, redrawn = student.head(guessed), student.pixels(guessed), student.redraw(cls[~part])
        small = F.interpolate(views[~part], size=(REDRAWN, REDRAWN), mode="area").flatten(1)
        losses = {
            "patches": cross(seen, said.float()),
            "pixels": F.mse_loss(drawn.float(), in_patches(views)[masked]),
            "redrawn": F.mse_loss(redrawn.float(), small),
        }
        loss = 0.5 * losses["patches"] + 2 * losses["pixels"] + 2 * losses["redrawn"]
        student.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        keep = 1 - (1 - 0.99) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        with torch.no_grad():
            for mean, now in zip(teacher.parameters(), student.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        if (step + 1) % 50 == 0:
            used = {"used": seen.mean(0).mul(len(seen)).gt(0.5).float().mean().item()}
            facts = {name: value.item() for name, value in losses.items()}
            log(record, step=step + 1, seconds=time.time() - began, **facts, **used)
        if (step + 1) % args.probe_every == 0 or step + 1 == args.steps:
            model = copy.deepcopy(teacher.encoder).half()
            model.config.architectures, model.config.dtype = [type(model).__name__], torch.float16
            model.config.save_pretrained(folder)
            save(model.state_dict(), folder / "model.safetensors")
            scores = dino_scores(model.float().eval(), processor)
            log(record, step=step + 1, probe=scores)
            write_card(folder, args, step + 1, time.time() - began, scores, random_scores, model)


def write_card(folder: Path, args, step: int, seconds: float, scores: dict, random_scores: dict, model) -> None:
    """The backbone's README: what it is, how it was made, what it scored."""
    lines = [
        "# The demo's encoder without words",
        "",
        "Pretrained from nothing by `python -m demo.pretrain_dino`, self-supervised: no caption, no label. It knows",
        "the demo's scenes and nothing else. MIT licence, as the project.",
        "",
        f'- Data: {args.pictures:,} drawn scenes (`demo/scenes.py`, split "train"), as JPEG at {IMAGE} pixels; no',
        "  scene of the held-out sets, no pair of `NEW_PAIRS`",
        f"- {type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters, stored in fp16",
        f"- {step:,} of {args.steps:,} steps of {args.batch} pictures, half of them with 15% to 60% of the patches",
        f"  masked; seed {args.seed}, Muon and AdamW, bf16 autocast; the teacher is what is kept",
        "- DINO's own task, that the CLS tokens of two crops agree, learnt nothing in the time there was; this is",
        "  trained to fill in masked patches (their colours, and what the teacher says of them) and to redraw the",
        "  picture from the CLS token",
        f"- {seconds / 60:.0f} minutes on {args.threads} thread(s), {platform.machine()}, torch {torch.__version__}",
        "",
        "Probe scores (`demo.pretrain_dino.dino_scores`), linear, on scenes that no training shows: the share of",
        "scenes in which colour and shape (`_all`: size too) of every object are read at its place, and of",
        "objects so read (`_objects`); beside them those of the same network with random weights.",
        "",
        "| | trained | random |",
        "| --- | --- | --- |",
        *[f"| {name} | {value:.4f} | {random_scores[name]:.4f} |" for name, value in scores.items()],
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=BACKBONES, help="folder that gets dino/")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and weights")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=64, help="pictures a step")
    parser.add_argument("--rate", type=float, default=1.0, help="times the usual learning rate")
    parser.add_argument("--pictures", type=int, default=8000, help="training pictures")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--probe-every", type=int, default=500, help="steps between probes, which also save")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pretrain(args)


if __name__ == "__main__":
    main()
