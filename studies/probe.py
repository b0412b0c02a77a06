"""Requirements for the demo's frozen models, as scores: `python -m studies.probe` prints them.

The language model answers questions and writes captions from a description in words; a linear map reads every object's
attributes from the encoder's features. Both on scenes that no training uses.
"""

import io
import json
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from periscope.demo.scenes import draw_scenes, render
from periscope.evaluation.tasks.scenes import COLOURS, PLACES, SHAPES, SIZES
from studies.corpus import CLOSE, MEDIA, Medium, describe, prompt_of

BACKBONES = Path(__file__).parents[1] / "demo" / "backbones"
GRID = 6
HEADS = (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES))
NOTHING = -1


def cell_labels(objects: list[dict]) -> list[list[int]]:
    """Classes (heads, 9): for each of HEADS that of each cell, 0 where the cell is empty."""
    at = {thing["place"]: thing for thing in objects}
    return [[1 + values.index(at[place][name]) if place in at else 0 for place in PLACES] for name, values in HEADS]


def jpeg(picture: Image.Image, quality: int = 90) -> Image.Image:
    """The picture as a JPEG file would give it back."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


@torch.no_grad()
def answer_scores(
    model, tokenizer, drawn: list[list[dict]], seed: int = 0, questions: int = 8, medium: Medium = MEDIA["image"]
) -> dict[str, float]:
    """Accuracy of greedy answers, word for word, to questions on descriptions in words of the media `drawn`: in all
    (`qa_accuracy`) and by kind. An answer is the greedy one if each of its tokens, and the end, has the highest logit.
    """
    rng = random.Random(f"probe/{seed}")
    rows, kinds = [], []
    for things in drawn:
        opening = medium.opening + describe(medium, things, rng) + CLOSE
        for ask, wording, truth in medium.words.draw_questions(things, questions, rng):
            prompt = tokenizer.encode(opening + prompt_of(wording))
            target = [*tokenizer.encode(" " + truth, add_special_tokens=False), tokenizer.eos_token_id]
            rows.append((prompt, target))
            kinds.append(ask["kind"])
    right = []
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        length = max(len(prompt) + len(target) for prompt, target in part)
        ids = torch.full((len(part), length), tokenizer.pad_token_id)
        for row, (prompt, target) in enumerate(part):
            ids[row, : len(prompt) + len(target)] = torch.tensor(prompt + target)
        best = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits.argmax(-1)
        for row, (prompt, target) in enumerate(part):
            said = best[row, len(prompt) - 1 : len(prompt) + len(target) - 1].tolist()
            right.append(said == target)
    by_kind = defaultdict(list)
    for kind, good in zip(kinds, right, strict=True):
        by_kind[kind].append(good)
    return {"qa_accuracy": sum(right) / len(right)} | {
        f"qa_{kind}": sum(found) / len(found) for kind, found in sorted(by_kind.items())
    }


@torch.no_grad()
def caption_scores(
    model, tokenizer, drawn: list[list[dict]], seed: int = 0, medium: Medium = MEDIA["image"]
) -> dict[str, float]:
    """Share of media whose greedy caption, from a description in words, names exactly their content."""
    rng = random.Random(f"probe/{seed}")
    prompts = [tokenizer.encode(medium.opening + describe(medium, things, rng) + CLOSE) for things in drawn]
    right = 0
    for start in range(0, len(drawn), 64):
        part = prompts[start : start + 64]
        length = max(map(len, part))
        ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(row)) + row for row in part])
        said = model.generate(
            input_ids=ids,
            attention_mask=(ids != tokenizer.pad_token_id).long(),
            max_new_tokens=60,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(said[:, length:], skip_special_tokens=True)
        right += sum(medium.task.correct(text, things) for text, things in zip(texts, drawn[start:], strict=False))
    return {medium.task.whole: right / len(drawn)}


def pictures(scenes: list[list[dict]], seed: int) -> list[Image.Image]:
    """The scenes as rendered pictures after a JPEG round trip."""
    rng = random.Random(f"pictures/{seed}")
    return [jpeg(render(objects, rng)) for objects in scenes]


@torch.no_grad()
def features(model, transform, images: list[Image.Image], batch: int = 100) -> dict[str, torch.Tensor]:
    """`pooled` (images, width), before L2 normalisation, and `patches` (images, tokens, width) of the last block but
    one, of an open_clip model with a ViT tower."""
    pooled, patches = [], []
    for start in range(0, len(images), batch):
        pixels = torch.stack([transform(image) for image in images[start : start + batch]])
        last = len(model.visual.transformer.resblocks)
        found = model.visual.forward_intermediates(
            pixels, indices=[last - 2], normalize_intermediates=False, output_fmt="NLC", output_extra_tokens=False
        )
        pooled.append(found["image_features"])
        patches.append(found["image_intermediates"][0])
    return {"pooled": torch.cat(pooled), "patches": torch.cat(patches)}


def by_cell(patches: torch.Tensor) -> torch.Tensor:
    """The mean of the four patches in each cell: (images, 36, width), row-major, to (images, 9, width)."""
    images, width = len(patches), patches.shape[-1]
    step = GRID // 3
    return patches.view(images, 3, step, 3, step, width).mean((2, 4)).view(images, 9, width)


def linear_probe(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, steps: int = 300) -> torch.Tensor:
    """Fit softmax regressions from features (n, cells or 1, width) to labels (n, heads, 9), with full-batch Adam on
    standardised features; returns the predicted classes (n_test, heads, 9).
    """
    mean, std = train.mean(0, keepdim=True), train.std(0, keepdim=True) + 1e-5
    train, test = (train - mean) / std, (test - mean) / std
    sizes = [1 + len(values) for _, values in HEADS]
    cells = 9 // train.shape[1]
    weight = torch.zeros(train.shape[2], cells * sum(sizes), requires_grad=True)
    bias = torch.zeros(cells * sum(sizes), requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.02)

    def logits(inputs):
        return (inputs @ weight + bias).reshape(len(inputs), 9, sum(sizes)).split(sizes, dim=-1)

    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / steps)
        loss = sum(F.cross_entropy(part.flatten(0, 1), labels[:, n].flatten()) for n, part in enumerate(logits(train)))
        optimizer.zero_grad()
        (loss + 1e-4 * weight.square().sum()).backward()
        optimizer.step()
    with torch.no_grad():
        return torch.stack([part.argmax(-1) for part in logits(test)], dim=1)


def encoder_scores(
    model, transform, seed: int = 0, train: int = 4000, test: int = 300, read: Callable = features
) -> dict[str, float]:
    """Share of scenes for which a linear probe reads every object's colour and shape (`_all`: size too) at its place,
    with nothing missing or added, and (`_objects`) the share of objects read: from pooled features and from patches, on
    new scenes and new pairs. `read(model, transform, pictures)` gives the features by kind.
    """
    sets = {"train": (train, seed), "heldout": (test, seed), "new_pairs": (test, seed)}
    found, labels = {}, {}
    for split, (n, number) in sets.items():
        scenes = draw_scenes(number + 90000, n, split)
        found[split] = read(model, transform, pictures(scenes, number + 90000))
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


def language_scores(model, tokenizer, seed: int = 0, n: int = 300) -> dict[str, dict[str, dict[str, float]]]:
    """Questions and captions from descriptions in words of new scenes, sounds and clips, `n` of each split: medium ->
    split ("heldout" or "new_pairs") -> score -> value.
    """
    scores: dict[str, dict] = {}
    for name, medium in MEDIA.items():
        for split in ("heldout", "new_pairs"):
            rng = random.Random(f"probe/{name}/{seed}/{split}")
            drawn = [medium.draw(rng, split) for _ in range(n)]
            found = answer_scores(model, tokenizer, drawn, seed, medium=medium)
            found |= caption_scores(model, tokenizer, drawn, seed, medium)
            scores.setdefault(name, {})[split] = found
    return scores


def load_clip(folder: Path = BACKBONES / "clip"):
    """The demo's encoder and its transform, through open_clip's own loader."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", require_pretrained=True)
    return model.eval(), transform


def load_language_model(folder: Path = BACKBONES / "lm"):
    """The demo's language model in fp32 and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def main() -> None:
    model, transform = load_clip()
    print(json.dumps(encoder_scores(model, transform)))
    for name, splits in language_scores(*load_language_model()).items():
        for split, found in splits.items():
            print(name, split, json.dumps({score: round(value, 4) for score, value in found.items()}))


if __name__ == "__main__":
    main()
