"""Pretrain the demo's Mamba language model from scratch: `python -m studies.pretrain_mamba`.

It has the same tokenizer and documents of scenes as the Llama, and can take its place in the demo (`--lm
demo/backbones/mamba`). A state-space model can't have several parallel continuations of one description, so here they
follow one another, in any order. Writes demo/backbones/mamba, with the probes in log.jsonl. With `--family pythia` a
GPT-NeoX of about as many parameters learns from the same documents, for comparison (`studies.pair`).
"""

import argparse
import random
import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from periscope.adapters.lm.selective_scan import use_selective_scan
from studies.corpus import ANSWER, Corpus, Row, build_tokenizer
from studies.muon import muon
from studies.pretrain import HERE, READY, begin_with, log
from studies.probe import MEDIA, answer_scores, caption_scores

SCENES: dict[tuple[str, ...], float] = {("image",): 1.0}
LISTS = ("ids", "weights", "segments", "words", "noise")


class Stream(Corpus):
    """Documents about scenes whose continuations follow one another."""

    def row(self, *args) -> Row:
        """A document of `Corpus` with its continuations in a random order."""
        return in_turn(super().row(*args), self.rng)


def in_turn(row: Row, rng: random.Random) -> Row:
    """The same document with its continuations in another order, and positions counted through."""
    last = max(row.segments)
    order = [0, *rng.sample(range(1, last + 1), last)]
    at = [place for segment in order for place, one in enumerate(row.segments) if one == segment]
    lists = {name: [getattr(row, name)[place] for place in at] for name in LISTS}
    return Row(**lists, positions=list(range(len(at))), blends=row.blends)


def scores_of(model: PreTrainedModel, tokenizer, n: int) -> dict[str, float]:
    """Questions and captions from textual descriptions of new scenes and new pairs, as `studies.probe` has them."""
    found: dict[str, float] = {}
    for split, before in (("heldout", ""), ("new_pairs", "new_pairs_")):
        rng = random.Random(f"probe/image/0/{split}")
        drawn = [MEDIA["image"].draw(rng, split) for _ in range(n)]
        one = answer_scores(model, tokenizer, drawn, 0, medium=MEDIA["image"])
        one |= caption_scores(model, tokenizer, drawn, 0, MEDIA["image"])
        found |= {before + name: value for name, value in one.items()}
    return found


def random_model(family: str, tokenizer, width: int, layers: int, states: int) -> PreTrainedModel:
    """A Mamba or a GPT-NeoX with random weights. Of width 192 and three layers they have nearly as many: the GPT-NeoX's
    feed-forward layers are 5/4 as wide as its others, not four times.
    """
    shared: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_size": width, "num_hidden_layers": layers}
    shared |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model: PreTrainedModel
    if family == "mamba":
        model = MambaForCausalLM(MambaConfig(tie_word_embeddings=False, state_size=states, **shared))
    else:
        heads: dict[str, Any] = {
            "num_attention_heads": width // 32,
            "intermediate_size": width * 5 // 4,
            "max_position_embeddings": 1024,
        }
        model = GPTNeoXForCausalLM(GPTNeoXConfig(tie_word_embeddings=False, **heads, **shared))
    torch.nn.init.normal_(cast(torch.Tensor, model.get_input_embeddings().weight), std=0.5)
    use_selective_scan(model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder that gets mamba/ or pythia/")
    parser.add_argument("--family", choices=("mamba", "pythia"), default="mamba", help="architecture")
    parser.add_argument("--start", type=Path, help="folder with the model's, whose weights to begin with")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=16, help="documents a step")
    parser.add_argument("--rate", type=float, default=1.0, help="times the usual learning rates")
    parser.add_argument("--width", type=int, default=192, help="hidden size")
    parser.add_argument("--layers", type=int, default=3, help="layers")
    parser.add_argument("--states", type=int, default=8, help="numbers a channel remembers")
    parser.add_argument("--seed", type=int, default=0, help="seed of documents and weights")
    parser.add_argument("--probe-every", type=int, default=500, help="steps between probes, which also save")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    folder = args.out / args.family
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "log.jsonl"
    record.unlink(missing_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    model = random_model(args.family, tokenizer, args.width, args.layers, args.states)
    if args.start:
        log(record, begun_with=begin_with(model, args.start / args.family / "model.safetensors"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith("A_log"))  # the scan has no gradient for it
    learnt = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wide = [p for name, p in learnt.items() if p.ndim == 2 and "layers" in name and "dt_proj" not in name]
    others = [p for p in learnt.values() if not any(p is one for one in wide)]
    optimizers = (
        muon(wide, lr=3e-3, weight_decay=0.02),
        torch.optim.AdamW(others, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98)),
    )
    rates = [optimizer.param_groups[0]["lr"] * args.rate for optimizer in optimizers]
    corpus = Stream(tokenizer, args.seed, SCENES)
    corpus.hardness, answering, began = 0.5 if args.start else 0.0, 1.0, time.process_time()
    for step in range(args.steps):
        batch = corpus.batch(args.batch)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 50, max(0.02, 2.5 * (1 - step / args.steps)))
        logits = model(
            inputs_embeds=batch.embed(cast(torch.Tensor, model.get_input_embeddings().weight)), use_cache=False
        ).logits
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
        weights = batch.weights[:, 1:].flatten()
        model.zero_grad(set_to_none=True)
        ((losses * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(learnt.values(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses = losses.detach()
        answering += 0.03 * (losses[weights == ANSWER].mean().item() - answering)
        if answering < READY:
            corpus.hardness = min(1.0, corpus.hardness + 0.001)
        if (step + 1) % 25 == 0:
            facts = {"captions": losses[weights == 1].mean().item(), "answers": answering}
            log(record, step=step + 1, seconds=time.process_time() - began, hardness=corpus.hardness, **facts)
        if (step + 1) % args.probe_every == 0 or step + 1 == args.steps:
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            model.half().save_pretrained(folder)
            model.float().eval()
            log(record, step=step + 1, probe=scores_of(model, tokenizer, 100))
            model.train().load_state_dict(kept)


if __name__ == "__main__":
    main()
