"""Fit a small adapter on cached features against a frozen language model.

python train.py --adapter mlp16                                     the newest feature set
python train.py --adapter linear --features features/photos --lm HuggingFaceTB/SmolLM2-360M
python train.py --recipe llava-1.5 --tiny                            as a published system, in miniature; see --list
python train.py --init runs/first --lora r=64,alpha=16 --text questions.jsonl      stage 2: tunes the language model too
python train.py --resume runs/first
python train.py --features features/photos=0.7 features/more=0.3    several sets, mixed by weight
python train.py --sweep adapter=mlp8,mlp16 lr=1e-3,3e-4 --name many  all combinations; the same command goes on
torchrun --nproc-per-node 8 train.py --adapter mlp16                on 8 GPUs; see docs/scaling.md
"""

import sys
from importlib.util import find_spec

if find_spec("periscope") is None:
    sys.exit("error: Periscope isn't installed in this Python; run this in the cloned folder first: pip install -e .")

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from periscope.console import run
from periscope.device import choose_device
from periscope.errors import RunError
from periscope.paths import tiny_folder
from periscope.training.options import Options, given

if TYPE_CHECKING:  # what takes a second to import, --help does without
    from periscope.training.distributed import Ranks
    from periscope.training.language_model_holder import LanguageModelHolder
    from periscope.training.run import Run

KEEP_CHECKPOINTS = 3
SAVE_SECONDS = 600
BAD_LOSSES = 5


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.list_:
        from periscope.training.memory.recipe_table import listing

        return print(listing())
    device = choose_device(options.device)

    from periscope.training.distributed import join
    from periscope.training.language_model_holder import LanguageModelHolder
    from periscope.training.run import Run, refuse_taken
    from periscope.training.settings import new_settings, resumed, run_path
    from periscope.training.sweep.sweep import sweep

    # 1. What is to be done, and by how many. A resumed run has its own settings.
    ranks = join(device)
    frozen = LanguageModelHolder(ranks.device)

    def one(settings: dict, path: Path, old: Run | None) -> bool:
        if not old:
            refuse_taken(path)
        if options.merge_lora:
            from periscope.adapters.io.merge_lora import refuse_merge

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
    frozen: "LanguageModelHolder",
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

    from periscope.adapters.composed import ComposedModel
    from periscope.adapters.io.checkpoint import save_adapter
    from periscope.adapters.io.merge_lora import merge_lora
    from periscope.adapters.lm.gradient_checkpointing import checkpoint_layers
    from periscope.adapters.lm.lora import FOLDER as LORA
    from periscope.adapters.lm.lora import add_lora, load_lora, lora_parameters, parse_lora
    from periscope.evaluation.controls import stand_ins
    from periscope.evaluation.training_scores import training_scores
    from periscope.training.data.dataset import load_steps, medium_contents
    from periscope.training.data.sources import by_modality, identity_of, look, make_steps, open_sets, shown
    from periscope.training.heldout import SAMPLES, peak_memory, sample_answers
    from periscope.training.memory.caching import caching
    from periscope.training.memory.plan import plan, spare_memory, together
    from periscope.training.modality_model import about_part, begin, make_part, note_templates
    from periscope.training.progress import ProgressBar, StopRequest
    from periscope.training.run import NullRun, Run, load_optimizer_state, optimizer_state
    from periscope.training.settings import refuse_changes, settle_length
    from periscope.training.start import start_folder
    from periscope.training.step import make_optimizer, set_rates, take_step

    device = frozen.device

    # 2. The features and their words, and the frozen language model that is to read them.
    sets = open_sets(settings, partial)
    identity = identity_of(sets, settings.get("text")) | {"device": torch.device(device).type}
    ranks.check_same("settings or files", [settings, identity])
    if old:
        checkpoint = old.load_state(device)
        facts = checkpoint["facts"]
        refuse_changes(facts, **identity)
        if torch.get_num_threads() != facts["threads"]:
            print(f"threads: {facts['threads']}, as at the checkpoint, because sums depend on it")
            torch.set_num_threads(facts["threads"])
    lm = frozen.load(settings["lm"], settings["precision"])

    # 3. The adapter between them, one a modality: from the checkpoint, an earlier run, or new. In stage 2 LoRA too.
    torch.manual_seed(settings["seed"])
    parts = {modality: make_part(one, lm, device, old) for modality, one in by_modality(sets).items()}
    start = old.path if old else settings["init"]
    if start and (lora := start_folder(start, sets[0].owner) / LORA).is_dir():
        load_lora(lm, lora, trained=True)
    elif settings["lora"]:
        add_lora(lm, *parse_lora(settings["lora"]))
    model = ComposedModel(parts) if len(parts) > 1 else parts[sets[0].modality]
    if lm.lora:
        maps = sum(parameter.numel() for parameter in lora_parameters(lm.model).values())
        rates = f"learning rate {settings['lora_lr']:g}, the projector's {settings['lr']:g}"
        print(f"LoRA: {settings['lora']}, {maps:,} parameters, {rates}")

    # 4. The words: what is learnt from, what is held out, and whose features stand in for whose in the control.
    for one in sets:
        part = parts[one.modality]
        one.choose(part, settings["limit"], words_alone=bool(lm.lora or part.adapter.soft_tokens))
        one.stand_in = stand_ins(medium_contents(one.features, one.heldout))
    longest = max(max(one.kept.lengths) for one in sets)

    # 5. How long, and what it will need.
    steps = make_steps(sets, settings, ranks.rank, ranks.size)
    settle_length(settings, steps.per_epoch)
    shared = settings["texts_per_medium"] != 1 and any(one.kept.shares for one in sets)
    needs, again = spare_memory(
        lambda every: together([plan(lm, part.adapter, longest, every, shared) for part in parts.values()]),
        settings["rerun_layers"],
        longest,
    )
    checkpoint_layers(lm, again)
    print(needs)
    one, *more = sets
    saving = None if more else caching(one.features, one.shape.kind, one.kept, settings, ranks.size)
    if not more:
        print(saving or "caching: nothing is noted of what encoding this set took")
    micro = facts["micro_batch"] if old else settings["micro_batch"]
    micro = micro or int(ranks.all_min(needs.micro_batch(settings["batch"], longest)))

    # 6. A folder of its own, or the old one at its last checkpoint.
    optimizer = make_optimizer(model.trained(), settings)
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=lm.dtype == torch.float16)
    if old:
        folder, first, best = old if ranks.first else NullRun(old.path), facts["step"], facts["best"]
        load_optimizer_state(optimizer, checkpoint["tensors"])
        scaler.load_state_dict(facts["scaler"])
        torch.set_rng_state(checkpoint["tensors"]["generator"].cpu())
        folder.cut_back(first)
        print(f"run: {folder.path}, going on after step {first} of {settings['steps']}")
    else:
        for one, its_steps in zip(sets, steps.parts, strict=True):
            if one is by_modality(sets)[one.modality]:
                begin(parts[one.modality], one, its_steps.first_rows())
        note_templates(settings, parts)
        folder, first, best = Run.create(path, settings) if ranks.first else NullRun(path), 0, None
        print(f"run: {folder.path}")

    ranks.start_alike(model.trained().values())

    def save(step: int, is_best: bool) -> None:
        facts_of = {"held-out loss": best} | {key: settings[key] for key in ("steps", "batch", "lr", "seed")}
        facts_of |= {key: settings[key] for key in ("lora", "lora_lr") if lm.lora}

        def write(path: Path) -> None:
            for modality, part in parts.items():
                about = about_part(part, [one for one in sets if one.modality == modality], step, facts_of)
                folder_of = path.with_name(f"{path.name}-{modality}") if len(parts) > 1 else path
                save_adapter(folder_of, part.adapter, about, lm=lm)

        state = {
            "tensors": optimizer_state(optimizer) | {"generator": torch.get_rng_state()},
            "facts": identity
            | {"best": best, "micro_batch": micro, "threads": torch.get_num_threads(), "scaler": scaler.state_dict()},
        }
        folder.save(step, write, state, KEEP_CHECKPOINTS, is_best)

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

        last = bool(ranks.all_max(stop.asked)) or step == settings["steps"]
        is_best = False
        if any(one.heldout for one in sets) and (last or step % settings["eval_every"] == 0):
            losses, ratio, each = look(model, sets, steps.counts(step), micro, ranks)
            answers = [sample_answers(model, one.encoded, one.heldout) for one in sets]
            scores = training_scores([row | {"id": (i, row["id"])} for i, rows in enumerate(answers) for row in rows])
            more = peak_memory(device) | ({"sets": each} if len(sets) > 1 else {})
            folder.log(step=step, heldout=losses, rms_ratio=ratio, scores=scores, **more)
            folder.write_samples(step, [row for rows in answers for row in rows[:SAMPLES]])
            is_best = best is None or losses["real"] < best
            best = losses["real"] if is_best else best
            for name, found in each.items():
                bar.say(shown(step, found, name if len(sets) > 1 else ""))
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


if __name__ == "__main__":
    run(main)
