"""Pretrain the demo's self-supervised image encoder from scratch: `python -m studies.pretrain_dino`.

Writes demo/backbones/dino (transformers' Dinov2Model) with its preprocessing and a card. It sees pictures of the split
"train" only, and no word or label about them. Of two views of a picture the student sees one, and the teacher, its
moving average, the other. The student's code of each part of its view must be closer to the teacher's code of the same
part of the other view than to the codes of that part in 2,000 other pictures (InfoNCE on parts: DenseCL,
https://arxiv.org/abs/2011.09157; with a moving average as teacher: MoCo v3, https://arxiv.org/abs/2104.02057). The CLS
token must tell all parts in this way. Different places of one picture are not compared, because positions alone
separate them. The parts of a view come from different pictures, because otherwise a part is recognised by its
surroundings.

Tried before: DINO's own task, agreement of two crops' CLS tokens, learnt nothing in 350 steps (what two crops of these
scenes share most easily is the tint of the background). Masked patches learnt colours (0.42 of scenes read completely
from its patches). Parts that stay in their own pictures: 0.94 found among 2,000 after 550 steps, and 0.37 read.
"""

import argparse
import copy
import math
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from studies.pretrain import IMAGE, MEAN, STD, draw_pool, log, save, schedule
from studies.pretrain_media import optimizers_for
from studies.probe import BACKBONES, by_cell, encoder_scores

PATCH, WIDTH, LAYERS = 16, 192, 4
PARTS, CODE = 9, 96
HEAT = 0.1
REMEMBERED = 2048


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


class Network(torch.nn.Module):
    """The encoder with heads for the codes of its parts and of its CLS token, which are discarded later; one each for
    student and teacher.
    """

    def __init__(self):
        super().__init__()
        self.encoder = build()
        self.parts = head(CODE)
        self.whole = head(PARTS * CODE)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, 3, side, side) -> codes of the parts, as the patches and as the CLS token tell them, both
        (batch, 9, code) of length 1.
        """
        found = self.encoder(pixel_values=pixels).last_hidden_state
        parts, whole = self.parts(by_cell(found[:, 1:])), self.whole(found[:, 0]).view(-1, PARTS, CODE)
        return F.normalize(parts.float(), dim=-1), F.normalize(whole.float(), dim=-1)


def head(out: int) -> torch.nn.Sequential:
    """A two-layer MLP from the encoder's width."""
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.GELU(), torch.nn.Linear(2 * WIDTH, out))


def view_of(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels (n, 3, 96, 96) to normalised floats, each shifted by up to 4 pixels, scaled slightly in each
    direction, rotated by up to 10 degrees, with varied brightness and tint, so that neither the background nor an exact
    position identifies the picture. Never mirrored, and colours keep their names.
    """
    n = len(pixels)
    turn = torch.empty(n).uniform_(-0.17, 0.17)
    wide, high = torch.empty(2, n).uniform_(0.85, 1.15)
    theta = torch.stack(
        [turn.cos() * wide, -turn.sin() * high, torch.zeros(n), turn.sin() * wide, turn.cos() * high, torch.zeros(n)], 1
    ).view(n, 2, 3)
    theta[:, :, 2] = torch.empty(n, 2).uniform_(-1 / 12, 1 / 12)
    grid = F.affine_grid(theta, [n, 3, IMAGE, IMAGE], align_corners=False)
    found = F.grid_sample(pixels.float() / 255, grid, mode="bilinear", padding_mode="border", align_corners=False)
    found = found * torch.empty(n, 3, 1, 1).uniform_(0.82, 1.0) + 0.04 * torch.randn(n, 1, 1, 1)
    found = (found + 0.02 * torch.rand(n, 1, 1, 1) * torch.randn_like(found)).clamp(0, 1)
    return (found - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def mixed(views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (n, 3, side, side) -> pictures whose nine parts come from different ones, and the sources (n, 9). The
    surroundings of a part then say nothing about it.
    """
    n, side = len(views), views.shape[-1] // 3
    sources = torch.stack([torch.randperm(n) for _ in range(PARTS)], 1)
    cells = views.view(n, 3, 3, side, 3, side).permute(0, 2, 4, 1, 3, 5).reshape(n, PARTS, 3, side, side)
    cells = cells[sources, torch.arange(PARTS)]
    return cells.view(n, 3, 3, 3, side, side).permute(0, 3, 1, 4, 2, 5).reshape(views.shape), sources


def unmixed(codes: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Codes (n, 9, code) of the parts of mixed pictures, put back to where their own picture is."""
    found = torch.empty_like(codes)
    found[sources, torch.arange(PARTS)] = codes
    return found


def contrast(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Codes of pictures (batch, parts, code) and of the same and more pictures (most, parts, code) -> the mean
    cross-entropy of finding each part's own picture among them all by cosine, and the share found.
    """
    scores = torch.einsum("apc,bpc->pab", student, teacher) / HEAT
    own = torch.arange(len(student)).expand(scores.shape[0], -1)
    return F.cross_entropy(scores.flatten(0, 1), own.flatten()), (scores.argmax(-1) == own).float().mean().item()


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


def load(folder: Path = BACKBONES / "dino"):
    """The demo's self-supervised encoder in fp32 and its preprocessing, through transformers' own loaders."""
    from transformers import AutoModel, BitImageProcessor

    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), BitImageProcessor.from_pretrained(folder)


def pretrain(args) -> None:
    """Train student and teacher; the teacher's folder is written at every probe."""
    began = time.time()
    torch.manual_seed(args.seed)
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
    random_scores = encoder_scores(teacher.encoder.eval(), processor, train=3000, read=features)
    log(record, step=0, probe=random_scores)
    optimizers = optimizers_for(student)
    rates = [optimizer.param_groups[0]["lr"] * args.rate for optimizer in optimizers]
    order: list[int] = []
    earlier = torch.zeros(0, PARTS, CODE)
    for step in range(args.steps):
        if len(order) < args.batch:
            order = torch.randperm(len(pixels)).tolist()
        chosen, order = order[: args.batch], order[args.batch :]
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step, args.steps, 100)
        (ours, our_sources), (theirs, their_sources) = (mixed(view_of(pixels[chosen])) for _ in range(2))
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            with torch.no_grad():
                earlier = torch.cat([unmixed(teacher(theirs)[0], their_sources), earlier])[:REMEMBERED]
            parts, whole = (unmixed(codes, our_sources) for codes in student(ours))
        found = {"parts": contrast(parts, earlier), "whole": contrast(whole, earlier)}
        loss = torch.stack([one for one, _ in found.values()]).sum()
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
            facts = {name: one.item() for name, (one, _) in found.items()}
            facts |= {f"{name}_found": share for name, (_, share) in found.items()}
            log(record, step=step + 1, seconds=time.time() - began, **facts)
        if (step + 1) % args.probe_every == 0 or step + 1 == args.steps:
            model = copy.deepcopy(teacher.encoder).half()
            model.config.architectures, model.config.dtype = [type(model).__name__], torch.float16
            model.config.save_pretrained(folder)
            save(model.state_dict(), folder / "model.safetensors")
            scores = encoder_scores(model.float().eval(), processor, train=3000, read=features)
            log(record, step=step + 1, probe=scores)
            write_card(folder, args, step + 1, time.time() - began, scores, random_scores, model)


def write_card(folder: Path, args, step: int, seconds: float, scores: dict, random_scores: dict, model) -> None:
    """The model's README: what it is, how it was made, its scores."""
    lines = [
        "# The demo's encoder without words",
        "",
        "Pretrained from scratch by `python -m studies.pretrain_dino`, self-supervised: no caption, no label. It knows",
        "the demo's scenes and nothing else. MIT licence, as the project.",
        "",
        f'- Data: {args.pictures:,} drawn scenes (`demo/scenes.py`, split "train"), as JPEG at {IMAGE} pixels; no',
        "  scene of the held-out sets, no pair of `NEW_PAIRS`",
        f"- {type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters, stored in fp16",
        f"- {step:,} of {args.steps:,} steps of {args.batch} pictures, two views of each; seed {args.seed}, Muon and",
        "  AdamW, bf16 autocast; the teacher is what is kept",
        f"- Trained to find each part of a picture again in another view of it among the same parts of {REMEMBERED:,}",
        "  pictures, from its patches and from its CLS token; a view's parts come from different pictures",
        f"- {seconds / 60:.0f} minutes on {args.threads} thread(s), {platform.machine()}, torch {torch.__version__}",
        "",
        "Probe scores (`studies.probe.encoder_scores`), linear, on scenes that no training shows: the share of",
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
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=96, help="pictures a step")
    parser.add_argument("--rate", type=float, default=1.0, help="times the usual learning rate")
    parser.add_argument("--pictures", type=int, default=8000, help="training pictures")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--probe-every", type=int, default=250, help="steps between probes, which also save")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pretrain(args)


if __name__ == "__main__":
    main()
