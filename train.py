"""Train a small adapter on cached features for a frozen language model: python train.py --help."""

import math
import os
import sys
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

if sys.version_info < (3, 11):  # noqa: UP036 an older Python must get this far, so the file has no newer syntax
    sys.exit("error: Periscope needs Python 3.11 or newer, and this is {}.{}".format(*sys.version_info))
if find_spec("periscope") is None:
    sys.exit("error: Periscope isn't installed in this Python; run this in the cloned folder first: pip install -e .")

from periscope.adapters.names import is_hub_adapter
from periscope.console import STOPPED, announce, command, going_on, run
from periscope.device import choose_device, rules_of
from periscope.paths import tiny_folder
from periscope.shards.sharing.names import is_hub_set
from periscope.training.config import Request, TrainConfig, check_paths, named_features, parse_request, refuse_set

if TYPE_CHECKING:  # importing torch takes seconds, which --help doesn't need
    from periscope.training.distributed import Ranks
    from periscope.training.models.language_model_holder import LanguageModelHolder
    from periscope.training.run import Run
    from periscope.training.session import Session

SAVE_SECONDS = 600  # a checkpoint is written at least this often


def main() -> None:
    request = parse_request()
    if request.list_:
        from periscope.training.memory.listing import listing

        return print(listing())
    check_paths(request)
    announce(f"train: going on with {request.resume}" if request.resume else "train: preparing")
    request = with_fetched(request)
    config = check_request(request)
    device = choose_device(request.device)

    from periscope.adapters.io.merge_lora import refuse_merge
    from periscope.training.branch import resume
    from periscope.training.distributed import join
    from periscope.training.leaving import refuse_closed
    from periscope.training.models.language_model_holder import LanguageModelHolder
    from periscope.training.resolve import complete_config, run_path
    from periscope.training.run import Run, refuse_taken
    from periscope.training.sweep.sweep import sweep

    ranks = join(device)
    holder = LanguageModelHolder(ranks.device, request.trust_remote_code)

    def train_one(config: TrainConfig, path: Path, old: Run | None) -> bool:
        if not old:
            refuse_taken(path)
        if request.merge_lora:
            refuse_merge(request.merge_lora, str(config.lm), config.lora.lora)
        return train(config, holder, ranks, path, old, request.partial, request.merge_lora)

    finished = True
    if request.sweep:
        finished = sweep(request, tiny_folder(), holder, ranks, train_one)
    elif request.resume:
        resumed, old = resume(Run.open(request.resume), request.flags, request.name, ranks)
        refuse_closed(resumed, request.for_)
        finished = train_one(resumed, old.path, old)
    elif config:
        config = complete_config(config, request, tiny_folder())
        finished = train_one(config, run_path(request.name, config.adapter), None)
    ranks.leave()
    if not finished and ranks.size == 1:  # torchrun would report a failure of each of its processes
        sys.exit(STOPPED)


def check_request(request: Request) -> TrainConfig | None:
    """Refuse what can't be trained, before torch is imported; of a single new run also its configuration.

    Of torchrun's processes the first says what was chosen.
    """
    from periscope.adapters.io.schema import refuse_no_merge
    from periscope.atomic import check_writable
    from periscope.training.branch import check_resume
    from periscope.training.resolve import choose_config, run_path
    from periscope.training.run import Run, refuse_taken
    from periscope.training.sweep.combinations import check_sweep

    if request.sweep:
        check_sweep(request)
        return None
    if request.resume:
        check_resume(Run.open(request.resume), request.flags)
        return None
    silent: AbstractContextManager = (
        nullcontext() if os.environ.get("RANK", "0") == "0" else redirect_stdout(StringIO())
    )
    with silent:
        config = choose_config(request)
    if request.merge_lora:
        refuse_no_merge(request.merge_lora, config.lora.lora)
    if os.environ.get("RANK", "0") == "0":
        refuse_taken(path := run_path(request.name, config.adapter))
        check_writable(path)
    return config


def with_fetched(request: Request) -> Request:
    """The request with what it names on the Hub, feature sets and an adapter, fetched and named by its folders."""
    flags, names = dict(request.flags), named_features(request.flags)
    if any(map(is_hub_set, names)):
        from periscope.shards.sharing.fetch import fetched_names

        flags["features"] = fetched_names(names, partial(refuse_set, request.for_))
    if (init := str(flags.get("init") or "")) and is_hub_adapter(init):
        from periscope.adapters.io.fetch import fetch_adapter

        flags["init"] = str(fetch_adapter(init))
    return replace(request, flags=flags)


def train(
    config: TrainConfig,
    holder: "LanguageModelHolder",
    ranks: "Ranks",
    path: Path,
    old: "Run | None" = None,
    partial: bool = False,
    merged: Path | None = None,
) -> bool:
    """Train one adapter: a new run in the folder `path`, or `old` from its last checkpoint.

    partial: accept texts whose media are missing · merged: folder for the language model with LoRA merged. Returns
    False when training was stopped early, with a checkpoint.
    """
    from periscope.training.session import prepare

    with going_on(lambda: _advice(path)), ExitStack() as locks:
        if old and ranks.first:
            locks.enter_context(old.locked())
        session = prepare(config, holder, ranks, path, old, partial)
        if not old:
            locks.enter_context(session.run.locked())
        fit(session)
        return finish(session, holder, merged)


def _advice(path: Path) -> str:
    """How to go on with the run in `path`, which an error of the disk ended."""
    from periscope.training.run import Run

    if Run(path).has_checkpoint():
        return f"go on with: {command('train', '--resume', path)}"
    return f"train again from the start, with --name {path.name}"


def fit(session: "Session") -> None:
    """Train to the last step, or until Ctrl-C or SIGTERM."""
    from periscope.training.data.steps import load_steps
    from periscope.training.progress import ProgressBar, StopRequest
    from periscope.training.step import set_rates, take_step

    config, schedule, ranks, run_folder = session.config, session.schedule, session.ranks, session.run
    run_folder.track(config.logging.track, session.step)
    saved_at = time.monotonic()
    rules = rules_of(session.device)
    loader = load_steps(session.steps, session.step, schedule.steps, workers=rules.loaders, pin=rules.pinned)
    with StopRequest(ranks.first) as stop, ProgressBar(schedule.steps, session.step) as bar:
        if session.evaluation_due and not session.evaluated:
            session.evaluate_unless_stopped(stop, bar.say)  # its process was stopped before it
        ended = session.stopped or session.out_of_patience
        for batch in () if ended else bar.timed(loader):
            session.step += 1
            rate = set_rates(session.optimizer, session.step, schedule.steps, config)
            loss, norm, session.micro_batch = take_step(
                session.model,
                session.optimizer,
                session.scaler,
                batch,
                session.micro_batch,
                config.optim.grad_clip,
                ranks,
            )  # fmt: skip
            timing = bar.update(loss, batch.count())
            run_folder.log(step=session.step, loss=loss, lr=rate, grad_norm=norm, targets=batch.count(), **timing)
            session.check_loss(loss, norm, batch, bar.say)

            stopping, last = bool(ranks.all_max(stop.asked)), session.step == schedule.steps
            due = session.step % schedule.save_every == 0 or time.monotonic() - saved_at > SAVE_SECONDS
            due = due and math.isfinite(loss)  # a streak of bad losses must not push the good checkpoints out
            if stopping or last or due or session.evaluation_due:
                session.save()  # before the evaluation, which may take minutes
                saved_at = time.monotonic()
            if stopping:
                session.stopped = not last or session.evaluation_due
                break
            if session.evaluation_due:
                session.evaluate_unless_stopped(stop, bar.say)
                if session.best is not None:
                    bar.mark_best(session.best, session.best_step)
                if session.stopped or session.out_of_patience:
                    break
    session.spent = bar.spent(session.steps.per_epoch)
    run_folder.close()


def finish(session: "Session", holder: "LanguageModelHolder", merged: Path | None = None) -> bool:
    """Verify that a frozen language model is unchanged, print what comes next, write the merged model if asked."""
    from periscope.adapters.io.merge_lora import merge_lora

    holder.check()
    path = session.run.path
    if session.caching and session.spent[0]:
        print(session.caching.measured(*session.spent))
    if session.stopped:
        print(f"stopped after step {session.step}; go on with: {command('train', '--resume', path)}")
        return False
    print(f"done: {path}; the language model{session.outcome()}.{session.best_look()}\n{session.next_step()}")
    if merged and session.ranks.first:
        merge_lora(session.run.step_folder() / "adapter", merged)
    return True


if __name__ == "__main__":
    run(main)
