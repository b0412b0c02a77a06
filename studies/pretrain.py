"""Pretrain the demo's image encoder and language model from scratch: `python -m studies.pretrain [--only encoder|lm]`.

Writes demo/backbones/clip (an open_clip model) and demo/backbones/lm (a Llama with its tokenizer), each with a card.
Both see only scenes of the split "train". The encoder is trained on captions by a contrastive loss, with captions that
differ in one attribute as hard negatives, and through linear heads that read each cell's colour, shape and size from
its features; the heads are then discarded. The contrastive loss alone is satisfied with a few attributes.
"""

import argparse
import json
import math
import os
import platform
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from periscope.demo.scenes import caption, draw_scene, render, split_of
from periscope.evaluation.tasks.scenes import COLOURS, PLACES, SHAPES, SIZES
from studies.corpus import ANSWER, EOS, Corpus, build_tokenizer
from studies.probe import GRID, HEADS, cell_labels, encoder_scores, jpeg, language_scores

HERE = Path(__file__).parents[1] / "demo" / "backbones"
MEAN, STD = (0.88, 0.88, 0.88), (0.2, 0.2, 0.2)
IMAGE, PATCH, WIDTH, EMBED = 96, 96 // GRID, 192, 288
POOL_HEADS, POOL_NOISE = 9, 0.5
CONTEXT = 48
READY = 0.2


def log(path: Path, **facts) -> None:
    """Print a line of facts and append it to `path` as JSON."""
    facts = {name: round(value, 5) if isinstance(value, float) else value for name, value in facts.items()}
    print(" ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    with path.open("a") as file:
        file.write(json.dumps(facts) + "\n")


def save(state: dict, path: Path) -> None:
    """Write a safetensors file under a temporary name and rename it into place."""
    from safetensors.torch import save_file

    waiting = path.with_name(path.name + ".tmp")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, waiting, metadata={"format": "pt"})
    os.replace(waiting, path)


def begin_with(model, path: Path) -> int:
    """Copy into `model` the tensors of a safetensors file that have its names and shapes, or fewer rows (an embedding
    table to which words were added: the other rows keep their initial values). Returns how many.
    """
    from safetensors.torch import load_file

    state = model.state_dict()
    copied = 0
    for name, part in load_file(path).items():
        place = state.get(name)
        if place is not None and place.ndim and part.ndim:
            place = place[: len(part)]
        if place is not None and place.shape == part.shape:
            place.copy_(part)
            copied += 1
    return copied


def schedule(step: int, steps: int, warmup: int = 200) -> float:
    """Linear warm-up, then a cosine down to 2%."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimizer_for(model: torch.nn.Module, rate: float, decay: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


def clip_config(vocabulary: int, pad: int, eos: int) -> dict:
    """The open_clip config of the demo's encoder."""
    return {
        "model_cfg": {
            "embed_dim": EMBED,
            "vision_cfg": {
                "image_size": IMAGE,
                "patch_size": PATCH,
                "width": WIDTH,
                "layers": 6,
                "head_width": 16,
                "attentional_pool": True,
                "attn_pooler_queries": 1,
                "attn_pooler_heads": POOL_HEADS,
            },
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": vocabulary,
                "hf_tokenizer_name": "demo",
                "width": 128,
                "heads": 4,
                "layers": 2,
                "pad_id": pad,
                "eos_id": eos,
                "pool_type": "eos",
            },
        },
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"},
    }


def pool_part(task: tuple[int, int]) -> tuple[torch.Tensor, list[list[dict]]]:
    """Draw `n` scenes from a seed: pixels (n, 3, size, size) uint8 after JPEG and resizing, and their objects."""
    import numpy
    from PIL import Image

    seed, n = task
    rng = random.Random(f"pool/{seed}")
    scenes = [draw_scene(rng, "train") for _ in range(n)]
    images = [
        jpeg(render(objects, rng), rng.randint(80, 95)).resize((IMAGE, IMAGE), Image.Resampling.BICUBIC)
        for objects in scenes
    ]
    pixels = torch.from_numpy(numpy.stack([numpy.asarray(image) for image in images]))
    return pixels.permute(0, 3, 1, 2).contiguous(), scenes


def draw_pool(seed: int, n: int, workers: int) -> tuple[torch.Tensor, list[list[dict]]]:
    """`n` training pictures as uint8 pixels (n, 3, 96, 96) and their scenes."""
    import multiprocessing

    tasks = [(seed * 100000 + part, 500) for part in range(math.ceil(n / 500))]
    pixels, scenes = torch.empty(len(tasks) * 500, 3, IMAGE, IMAGE, dtype=torch.uint8), []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for part, (some, drawn) in enumerate(pool.imap(pool_part, tasks)):
            pixels[part * 500 : part * 500 + 500] = some
            scenes += drawn
    return pixels, scenes


def hard_negative(objects: list[dict], rng: random.Random) -> list[dict]:
    """The scene with one attribute changed, or the colours of two objects swapped; never a held-out one."""
    while True:
        other = [dict(thing) for thing in objects]
        thing = rng.choice(other)
        change = rng.choice(("colour", "shape", "size", "place", "swap"))
        if change == "swap" and len(other) > 1:
            one, two = rng.sample(other, 2)
            one["colour"], two["colour"] = two["colour"], one["colour"]
        elif change == "place":
            thing["place"] = rng.choice([p for p in PLACES if all(o["place"] != p for o in objects)])
            other.sort(key=lambda o: PLACES.index(o["place"]))
        elif change != "swap":
            values = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}[change]
            thing[change] = rng.choice([value for value in values if value != thing[change]])
        if other != objects and split_of(other) == "train":
            return other


def augment(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels to normalised floats, each shifted by up to 3 pixels, with varied brightness and contrast."""
    n = len(pixels)
    padded = F.pad(pixels.float() / 255, (3, 3, 3, 3), mode="replicate")
    shifts = torch.randint(0, 7, (n, 2)).tolist()
    pixels = torch.stack([p[:, y : y + IMAGE, x : x + IMAGE] for p, (y, x) in zip(padded, shifts, strict=True)])
    pixels = pixels * (1 + 0.08 * torch.randn(n, 1, 1, 1)) + 0.03 * torch.randn(n, 3, 1, 1)
    pixels = pixels + 0.02 * torch.rand(n, 1, 1, 1) * torch.randn_like(pixels)
    pixels = pixels.clamp(0, 1)
    return (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def cell_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits (n, cells, all classes) against labels (n, heads, cells); empty cells weigh 0.3."""
    sizes = [1 + len(values) for _, values in HEADS]
    loss = torch.zeros(())
    for head, part in enumerate(logits.float().split(sizes, dim=-1)):
        truth = labels[:, head].flatten()
        weight = torch.where(truth > 0, 1.0, 0.3)
        loss = loss + (F.cross_entropy(part.flatten(0, 1), truth, reduction="none") * weight).sum() / weight.sum()
    return loss / len(HEADS)


class Heads(torch.nn.Module):
    """Linear readouts of each cell's attributes: from the pooled vector, from each patch of the last block and of the
    one before it, and from the mean of the latter's patches (which makes each patch encode its position, so that
    pooling can gather them).

    The pooled vector is read under noise, so that all attributes get an equal part of it. Without noise a few
    directions hold most of its variance, and an adapter learns the other attributes late.
    """

    def __init__(self):
        super().__init__()
        classes = sum(1 + len(values) for _, values in HEADS)
        self.pooled = torch.nn.Linear(EMBED, 9 * classes)
        self.patches = torch.nn.Linear(WIDTH, classes)
        self.last = torch.nn.Sequential(torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, classes))
        self.mean = torch.nn.Linear(WIDTH, 9 * classes)
        rows = torch.arange(GRID) // (GRID // 3)
        self.register_buffer("cells", (rows[:, None] * 3 + rows[None]).flatten())

    def forward(self, pooled, patches, last, labels):
        noise = POOL_NOISE * pooled.detach().square().mean().sqrt() * torch.randn_like(pooled)
        read = self.pooled(pooled + noise).view(len(pooled), 9, -1)
        spread = labels[:, :, self.cells]
        return (
            cell_loss(read, labels),
            cell_loss(self.patches(patches), spread),
            cell_loss(self.last(last), spread),
            cell_loss(self.mean(patches.mean(1)).view(len(pooled), 9, -1), labels),
        )


def pretrain_encoder(args) -> None:
    """Train the open_clip model; its folder is written at every probe."""
    import open_clip
    from open_clip.model import CLIP
    from tokenizers import processors

    torch.manual_seed(args.seed)
    rng = random.Random(f"encoder/{args.seed}")
    folder = args.out / "clip"
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "log.jsonl"
    record.unlink(missing_ok=True)
    began = time.time()
    tokenizer = build_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A {EOS}", special_tokens=[("<s>", bos), (EOS, eos)]
    )
    tokenizer.save_pretrained(folder)
    config = clip_config(len(tokenizer), tokenizer.pad_token_id, eos)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    model, heads = CLIP(**config["model_cfg"]), Heads()
    if args.start:
        log(record, begun_with=begin_with(model, args.start / "clip" / "open_clip_model.safetensors"))
    else:
        with torch.no_grad():
            model.visual.positional_embedding.mul_(8)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**{"size": IMAGE, **config["preprocess_cfg"]}), is_train=False
    )
    pixels, scenes = draw_pool(args.seed + 1, args.pictures, args.workers)
    labels = torch.tensor([cell_labels(objects) for objects in scenes])
    log(record, pictures=len(scenes), seconds=time.time() - began)
    both = torch.nn.ModuleList([model, heads])
    optimizer = optimizer_for(both, 1e-3, 0.05)
    words = Corpus(tokenizer, 0)

    def tokens(texts):
        rows = [[bos, *words.encode(text), eos] for text in texts]
        return torch.tensor([row + [tokenizer.pad_token_id] * (CONTEXT - len(row)) for row in rows])

    steps, batch = args.steps or 6000, args.batch or 64
    order: list[int] = []
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(scenes)).tolist()
        chosen, order = order[:batch], order[batch:]
        told = chosen[: batch // 2]
        texts = [caption(scenes[n], rng) for n in told]
        texts += [caption(hard_negative(scenes[n], rng), rng) for n in told]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * args.rate * schedule(step, steps)
        inputs = augment(pixels[chosen])
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            found = model.visual.forward_intermediates(
                inputs, indices=[4, 5], normalize_intermediates=False, output_fmt="NLC", output_extra_tokens=False
            )
            pooled = found["image_features"]
            patches, last = found["image_intermediates"]
            losses = heads(pooled, patches, last, labels[chosen])
            said = model.encode_text(tokens(texts))
        sights, said = F.normalize(pooled[: len(told)].float(), dim=-1), F.normalize(said.float(), dim=-1)
        logits = model.logit_scale.exp().clamp(max=100) * sights @ said.T
        truth = torch.arange(len(told))
        contrast = (F.cross_entropy(logits, truth) + F.cross_entropy(logits[:, : len(told)].T, truth)) / 2
        loss = losses[0] + 0.5 * losses[1] + 0.25 * losses[2] + 0.5 * losses[3] + 0.25 * contrast
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            parts = {
                name: part.item() for name, part in zip(("pooled", "patches", "last", "mean"), losses, strict=True)
            }
            log(record, step=step + 1, seconds=time.time() - began, contrast=contrast.item(), **parts)
        if (step + 1) % args.probe_every == 0 or step + 1 == steps:
            state = {name: tensor.half() for name, tensor in model.state_dict().items()}
            save(state, folder / "open_clip_model.safetensors")
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            model.load_state_dict(state)
            model.eval()
            scores = encoder_scores(model, transform)
            model.train()
            model.load_state_dict(kept)
            log(record, step=step + 1, probe=scores)
    write_card(folder, "encoder", args, steps, batch, time.time() - began, scores, model)


def pretrain_lm(args) -> None:
    """Train the Llama-class language model; its folder is written at every probe.

    The learning rate is constant for 60% of the steps, then falls linearly. Matrices are trained by Muon, which learns
    to look words up in about half of AdamW's steps (https://kellerjordan.github.io/posts/muon). Descriptions get harder
    only while answers are good (see Corpus.hardness).
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(args.seed)
    folder = args.out / "lm"
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "log.jsonl"
    record.unlink(missing_ok=True)
    began = time.time()
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 32,
        intermediate_size=2 * args.width,
        max_position_embeddings=512,
        initializer_range=args.width**-0.5,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # type: ignore[call-arg] # every config of transformers takes it
    )
    model = LlamaForCausalLM(config)
    balance(model)
    if args.start:
        log(record, begun_with=begin_with(model, args.start / "lm" / "model.safetensors"))
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers" in name)]
    optimizers = (
        torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98)),
    )
    rates = [optimizer.param_groups[0]["lr"] * args.rate for optimizer in optimizers]
    corpus = Corpus(tokenizer, args.seed)
    corpus.hardness, answering = 0.5 if args.start else 0.0, 1.0
    steps, rows = args.steps or 3400, args.batch or 16
    for step in range(steps):
        batch = corpus.batch(rows)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 50, max(0.02, 2.5 * (1 - step / steps)))
        embeds = batch.embed(model.get_input_embeddings().get_parameter("weight"))
        hidden_mask = torch.zeros(batch.mask.shape).masked_fill_(~batch.mask, torch.finfo(torch.bfloat16).min)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(
                inputs_embeds=embeds, attention_mask=hidden_mask, position_ids=batch.positions, use_cache=False
            ).logits
        losses = next_token_losses(logits.float(), batch)
        loss = (losses * batch.weights).sum() / batch.weights.sum()
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        answers = batch.weights == ANSWER
        answering += 0.03 * (losses.detach()[answers].mean().item() - answering)
        if answering < READY:
            corpus.hardness = min(1.0, corpus.hardness + 0.001)
        if (step + 1) % 50 == 0:
            facts = {"captions": losses.detach()[batch.weights == 1].mean().item(), "answers": answering}
            log(record, step=step + 1, seconds=time.time() - began, hardness=corpus.hardness, **facts)
        if (step + 1) % args.probe_every == 0 or step + 1 == steps:
            state = {name: tensor.half() for name, tensor in model.state_dict().items()}
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            model.load_state_dict(state)
            model.eval()
            scores = language_scores(model, tokenizer)
            model.train()
            config.save_pretrained(folder)
            model.half().save_pretrained(folder)
            model.float().load_state_dict(kept)
            log(record, step=step + 1, probe=scores)
    write_card(folder, "language model", args, steps, rows, time.time() - began, scores, model)


@torch.no_grad()
def balance(model) -> None:
    """Initialise a Llama whose residual stream carries its tokens: embeddings as large as what the layers add to them.

    With small embeddings the random output of the first layers drowns out which word is where, and for a long time a
    word isn't found again in its context.
    """
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_((2 * len(model.model.layers)) ** -0.5)
        layer.mlp.down_proj.weight.mul_((2 * len(model.model.layers)) ** -0.5)


def next_token_losses(logits: torch.Tensor, batch) -> torch.Tensor:
    """The cross-entropy of each position's token from the position that precedes it in its own segment (rows, length).

    A continuation's first token follows the description's end; elsewhere a token follows its left neighbour.
    """
    rows, length = batch.ids.shape
    before = torch.arange(length).expand(rows, length) - 1
    heads = torch.zeros_like(batch.positions, dtype=torch.bool)
    heads[:, 1:] = batch.positions[:, 1:] != batch.positions[:, :-1] + 1
    ends = torch.where(heads, batch.positions - 1, before).clamp(min=0)
    picked = logits.gather(1, ends[..., None].expand(-1, -1, logits.shape[-1]))
    return F.cross_entropy(picked.flatten(0, 1), batch.ids.flatten(), reduction="none").view(rows, length)


def write_card(folder: Path, what: str, args, steps: int, batch: int, seconds: float, scores: dict, model) -> None:
    """The model's README: what it is, how it was made, its scores."""
    count = sum(p.numel() for p in model.parameters())
    kind = "encoder" if what == "encoder" else "lm"
    optimizer = "AdamW" if kind == "encoder" else "Muon and AdamW"
    data = (
        f'{args.pictures:,} drawn scenes with captions (`demo/scenes.py`, split "train"), as JPEG at 96 pixels'
        if kind == "encoder"
        else "descriptions of drawn scenes, sounds and clips with captions, questions and answers (`demo/corpus.py`, "
        'splits "train")'
    )
    lines = [
        f"# The demo's {what}",
        "",
        f"Pretrained from scratch by `python -m studies.pretrain --only {kind}`. It knows the demo's media and",
        "nothing else. MIT licence, as the project.",
        "",
        f"- Data: {data}; nothing of the held-out sets, no pair of `NEW_PAIRS`",
        f"- {count:,} parameters, stored in fp16",
        f"- {steps:,} steps of {batch}, seed {args.seed}, {optimizer}, bf16 autocast",
        *(["- Begun with earlier weights (`--start`); steps and minutes are those after them"] if args.start else []),
        f"- {seconds / 60:.0f} minutes on {args.threads} thread(s), {platform.machine()}, torch {torch.__version__}",
        "",
        "Probe scores (`python -m studies.probe`), on media that no training shows:",
        "",
        *(encoder_table(scores) if kind == "encoder" else language_table(scores)),
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines))


def encoder_table(scores: dict[str, float]) -> list[str]:
    """Scores as a Markdown table."""
    return ["| | |", "| --- | --- |", *[f"| {name} | {value:.4f} |" for name, value in scores.items()]]


def language_table(scores: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """The result of studies.probe.language_scores as a Markdown table, one column per split."""
    lines = ["| | | heldout | new_pairs |", "| --- | --- | --- | --- |"]
    for medium, splits in scores.items():
        for name, value in splits["heldout"].items():
            lines.append(f"| {medium} | {name} | {value:.4f} | {splits['new_pairs'][name]:.4f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("encoder", "lm"), help="train this one alone (default: both)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder that gets clip/ and lm/")
    parser.add_argument("--start", type=Path, help="folder with clip/ and lm/ whose weights to begin with")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and weights")
    parser.add_argument("--steps", type=int, help="optimizer steps (default 6000, 3400)")
    parser.add_argument("--batch", type=int, help="pictures or documents a step (default 64, 16)")
    parser.add_argument("--rate", type=float, default=1.0, help="times the usual learning rates")
    parser.add_argument("--pictures", type=int, default=30000, help="training pictures of the encoder")
    parser.add_argument("--width", type=int, default=256, help="hidden size of the language model")
    parser.add_argument("--layers", type=int, default=4, help="layers of the language model")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw pictures")
    parser.add_argument("--probe-every", type=int, default=1000, help="steps between probes, which also save")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only != "lm":
        pretrain_encoder(args)
    if args.only != "encoder":
        pretrain_lm(args)


if __name__ == "__main__":
    main()
