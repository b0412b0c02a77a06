"""Fit a small adapter on cached features against a frozen language model.

python train.py --adapter mlp16                                     the newest feature set
python train.py --adapter linear --features features/photos --lm HuggingFaceTB/SmolLM2-360M
python train.py --recipe llava-1.5 --tiny                            as a published system, in miniature; see --list
python train.py --init runs/first --lora r=64,alpha=16 --text questions.jsonl      stage 2: tunes the language model too
python train.py --resume runs/first
python train.py --sweep adapter=mlp8,mlp16 lr=1e-3,3e-4 --name many  all combinations; the same command goes on
torchrun --nproc-per-node 8 train.py --adapter mlp16                on 8 GPUs; see docs/scaling.md
"""

import hashlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from console import choose_device, run, tiny_folder
from training import RunError
from training.options import Options, given

if TYPE_CHECKING:  # what takes a second to import, --help does without
    from training.distributed import Ranks
    from training.frozen import Frozen
    from training.run import Run

KEEP_CHECKPOINTS = 3
SAVE_SECONDS = 600
BAD_LOSSES = 5


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.list_:
        from training.table import listing

        return print(listing())
    device = choose_device(options.device)

    from training.distributed import join
    from training.frozen import Frozen
    from training.run import Run
    from training.settings import new_settings, resumed, run_path
    from training.sweep import sweep

    # 1. What is to be done, and by how many. A resumed run has its own settings.
    ranks = join(device)
    frozen = Frozen(ranks.device)

    def one(settings: dict, path: Path, old: Run | None) -> bool:
        if options.merge_lora:
            from adapters.merge import refuse_merge

            refuse_merge(options.merge_lora, settings["lm"], settings["lora"])
        return train(settings, frozen, ranks, path, old, options.partial, options.merge_lora)

    if options.sweep:
        sweep(options, tiny_folder(), frozen, ranks, one)
    elif options.resume:
        old = Run.open(options.resume)
        one(resumed(old, given(options)), old.path, old)
    else:
        settings = new_settings(options, tiny_folder())
        one(settings, run_path(options.name, settings["adapter"]), None)
    ranks.leave()


def train(
    settings: dict,
    frozen: "Frozen",
    ranks: "Ranks",
    path: Path,
    old: "Run | None" = None,
    partial: bool = False,
    merged: Path | None = None,
) -> bool:
    """Train one adapter: a new run in the folder `path`, or `old` from its last checkpoint on. At its end also write
    the merged model to the folder `merged`.

    Returns True at its end, and False when it was stopped before, with a checkpoint.
    """
    import torch

    from adapters.checkpoint import load_adapter, save_adapter
    from adapters.injection import injection_into
    from adapters.lora import FOLDER as LORA
    from adapters.lora import add_lora, load_lora, lora_parameters, parse_lora
    from adapters.merge import merge_lora
    from adapters.model import AdaptedModel, Adapter
    from adapters.projectors import find_projector
    from adapters.prompt import Prompt, Template, default_template
    from adapters.recompute import checkpoint_layers
    from scoring.control import stand_ins
    from scoring.quick import quick_scores
    from shards.read import FeatureSet
    from training.caching import caching
    from training.data import Encoded, Steps, feature_shape, load_steps, medium_contents
    from training.heldout import (
        SAMPLES,
        choose_heldout,
        heldout_losses,
        peak_memory,
        sample_answers,
        scale_ratio,
        still_blind,
    )
    from training.plan import plan
    from training.progress import ProgressBar, StopRequest
    from training.run import Onlooker, Run, load_optimizer_state, optimizer_state
    from training.settings import refuse_changes, settle_length, template_fields
    from training.start import refuse_other_start, start_folder
    from training.step import make_optimizer, set_rates, take_step
    from training.warm_start import warm_start

    device, kind = frozen.device, find_projector(settings["adapter"])[0].kind

    # 2. The features and their words, and the frozen language model that is to read them.
    features = FeatureSet(settings["features"])
    shape = feature_shape(features, kind)
    texts = features.texts(settings.get("text"), partial=partial)
    identity = {
        "features": features.sha256,
        "texts": sha256(settings["text"]) if settings.get("text") else features.texts_sha256,
        "device": torch.device(device).type,
    }
    ranks.agree("settings or files", [settings, identity])
    if old:
        checkpoint = old.load_state(device)
        facts = checkpoint["facts"]
        refuse_changes(facts, **identity)
        if torch.get_num_threads() != facts["threads"]:
            print(f"threads: {facts['threads']}, as at the checkpoint, because sums depend on it")
            torch.set_num_threads(facts["threads"])
    lm = frozen.load(settings["lm"], settings["precision"])
    checkpoint_layers(lm, settings["rerun_layers"])

    # 3. The adapter between the two: from the checkpoint, from an earlier run, or new. In stage 2 LoRA too.
    torch.manual_seed(settings["seed"])
    start = old.path if old else settings["init"]
    if start:
        adapter, about = load_adapter(start_folder(start), device)
        refuse_other_start(about, start, features, lm)
    else:
        names = ("soft_prompt", "soft_prompt_mlp", "output_norm", "projector_hidden", "projector_layers")
        form = {name: settings[name] for name in names}
        if kind == "layers":
            form["injection"] = injection_into(lm, shape.tokens, settings["inject_layers"], settings["epalm_compat"])
        adapter = Adapter(settings["adapter"], shape, lm.hidden_size, lm.embedding_rms, **form)
        adapter.to(device)
        if adapter.soft_prompt is not None:
            adapter.soft_prompt.start_from(
                lm.embed(torch.randint(len(lm.tokenizer), (adapter.soft_tokens,)).to(device))
            )
    if old:
        template = Template.from_dict(about["template"])
    else:
        fields = template_fields(settings, shape, adapter)
        template = default_template(lm.tokenizer, settings.get("template"), settings.get("delimiters"), **fields)
    if start and about.get("lora"):
        load_lora(lm, start_folder(start) / LORA, trained=True)
    elif settings["lora"]:
        add_lora(lm, *parse_lora(settings["lora"]))
    prompt = Prompt(lm.tokenizer, template, features.manifest["modality"])
    model = AdaptedModel(lm, adapter, prompt, settings["token_noise"], settings["loss_mean"])
    trained = sum(parameter.numel() for parameter in adapter.parameters())
    print(f"adapter: {adapter.spec}, {trained:,} parameters, {shape.kind} to {adapter.tokens} tokens")
    if lm.lora:
        maps = sum(parameter.numel() for parameter in lora_parameters(lm.model).values())
        rates = f"learning rate {settings['lora_lr']:g}, the projector's {settings['lr']:g}"
        print(f"LoRA: {settings['lora']}, {maps:,} parameters, {rates}")

    # 4. The words: what is learnt from, what is held out, and whose features stand in for whose in the control.
    encoded = Encoded(features, model.prompt, adapter)
    learn = [text for text in texts if text.split == "train"][: settings["limit"] or None]
    kept = encoded.keep(learn, lm.max_length, words_alone=bool(lm.lora or adapter.soft_tokens))
    if not kept.texts:
        raise RunError(
            f"{features.path} has no words to train on ({len(texts)} texts, {len(learn)} of them for training); "
            "put a .txt beside each picture and run precompute.py again, or pass --text FILE"
        )
    heldout = choose_heldout(encoded, texts, kept.texts, lm.max_length)
    stand_in = stand_ins(medium_contents(features, heldout))
    left_out = "".join(f"; {count} left out: {reason}" for reason, count in kept.dropped.items())
    print(f"texts: {len(kept.texts):,} to learn from, {len(heldout)} held out for the loss{left_out}")

    # 5. How long, and what it will need.
    sizes = (settings[name] for name in ("batch", "seed", "texts_per_medium"))
    steps = Steps(encoded, kept, *sizes, ranks.rank, ranks.size)
    settle_length(settings, steps.per_epoch)
    needs = plan(lm, adapter, max(kept.lengths), settings["rerun_layers"])
    print(needs)
    saving = caching(features, kind, kept, settings, ranks.size)
    print(saving or "caching: nothing is noted of what encoding this set took")
    micro = facts["micro_batch"] if old else settings["micro_batch"]
    micro = micro or int(ranks.least(needs.micro_batch(settings["batch"], max(kept.lengths))))

    # 6. A folder of its own, or the old one at its last checkpoint.
    optimizer = make_optimizer(model.trained(), settings)
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=lm.dtype == torch.float16)
    if old:
        folder, first, best = old if ranks.first else Onlooker(old.path), facts["step"], facts["best"]
        load_optimizer_state(optimizer, checkpoint["tensors"])
        scaler.load_state_dict(facts["scaler"])
        torch.set_rng_state(checkpoint["tensors"]["generator"].cpu())
        folder.cut_back(first)
        print(f"run: {folder.path}, going on after step {first} of {settings['steps']}")
    else:
        rows = steps.first_rows().to(device)
        factor = adapter.match_scale(rows) if not start else 1
        if words := settings["start_words"]:
            ids = lm.tokenizer.encode(words, add_special_tokens=False)
            adapter.start_from(lm.embed(torch.tensor(ids, dtype=torch.long, device=device)), rows)
        if settings["warm_start"]:
            apart = warm_start(model, encoded, kept, settings["warm_start"], settings["lr"], settings["seed"])
            print(
                f"warm start: {len(apart)} steps, contrast with the words from {apart[0]:.2f} to {apart[-1]:.2f} nats"
            )
        settings |= {"template": template.style, "delimiters": list(template.delimiters)}
        folder, first, best = Run.create(path, settings) if ranks.first else Onlooker(path), 0, None
        print(f"run: {folder.path}" + (f", the projector's last layer scaled by {factor:.3g}" if factor != 1 else ""))

    ranks.start_alike(model.trained().values())

    def save(step: int, is_best: bool) -> None:
        about = {
            "modality": features.manifest["modality"],
            "encoder": features.manifest["encoder"],
            "storage": features.manifest["features"][shape.kind],
            "language_model": {"name": lm.name, "identity": lm.identity()},
            "template": template.to_dict(),
            "training": {"features": features.path.name, "texts": len(kept.texts), "step": step, "held-out loss": best}
            | {key: settings[key] for key in ("steps", "batch", "lr", "seed") + ("lora", "lora_lr") * bool(lm.lora)},
        }
        state = {
            "tensors": optimizer_state(optimizer) | {"generator": torch.get_rng_state()},
            "facts": identity
            | {"best": best, "micro_batch": micro, "threads": torch.get_num_threads(), "scaler": scaler.state_dict()},
        }
        folder.save(step, lambda path: save_adapter(path, adapter, about, lm=lm), state, KEEP_CHECKPOINTS, is_best)

    # 7. Train.
    folder.track(settings["track"], first)
    stop, bar = StopRequest(ranks.first), ProgressBar(settings["steps"], first)
    bad_losses, saved_at = 0, time.monotonic()
    on_gpu = torch.device(device).type == "cuda"
    loader = load_steps(steps, first, settings["steps"], workers=2 if on_gpu else 0, pin=on_gpu)
    for step, batch in enumerate(bar.timed(loader), first + 1):
        rate = set_rates(optimizer, step, settings)
        loss, norm, micro = take_step(model, optimizer, scaler, batch, micro, settings["clip"], ranks)
        targets = batch.count()
        folder.log(step=step, loss=loss, lr=rate, grad_norm=norm, targets=targets, **bar.update(loss, targets))
        if not math.isfinite(loss):
            bad_losses += 1
            bar.say(f"step {step}: the loss is {loss}, so no step was taken ({bad_losses} of at most {BAD_LOSSES})")
            if bad_losses == BAD_LOSSES:
                raise RunError(f"the loss was {loss} {BAD_LOSSES} times; try --precision bf16 or fp32, or a lower --lr")
        if scaler.is_enabled() and scaler.get_scale() < 1:
            raise RunError("fp16 gradients overflow at every scale; try --precision bf16 or fp32, or a lower --lr")

        last = bool(ranks.most(stop.asked)) or step == settings["steps"]
        is_best = False
        if heldout and (last or step % settings["eval_every"] == 0):
            losses = heldout_losses(model, encoded, heldout, stand_in, micro, ranks)
            ratio = scale_ratio(adapter, features, heldout)
            answers = sample_answers(model, encoded, heldout)
            folder.log(step=step, heldout=losses, rms_ratio=ratio, scores=quick_scores(answers), **peak_memory(device))
            folder.write_samples(step, answers[:SAMPLES])
            is_best = best is None or losses["real"] < best
            best = losses["real"] if is_best else best
            shown = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            bar.say(f"step {step}: held-out loss {shown}; tokens at {ratio:.2f} of the embeddings' RMS")
            if still_blind(step, losses):
                bar.say(
                    "still blind: another picture's features do as well. Look whether the captions fit the pictures, "
                    "try a higher --lr, or an adapter that reads patches (--adapter mlp)"
                )
        if last or is_best or step % settings["save_every"] == 0 or time.monotonic() - saved_at > SAVE_SECONDS:
            save(step, is_best)
            saved_at = time.monotonic()
        if last:
            break
    bar.close()
    folder.close()

    # 8. What came of it.
    frozen.check()
    if saving:
        print(saving.measured(*bar.spent(steps.per_epoch)))
    if step < settings["steps"]:
        print(f"stopped after step {step}; go on with: python train.py --resume {folder.path}")
    else:
        apart = "'s own weights are" if lm.lora else " is"
        print(f"done: {folder.path}; the language model{apart} unchanged. Next: python eval.py --run {folder.path}")
        if merged and ranks.first:
            merge_lora(folder.step_folder() / "adapter", merged)
    return step == settings["steps"]


def sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


if __name__ == "__main__":
    run(main)
