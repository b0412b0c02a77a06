"""Answer and score: a run's held-out texts with their controls, or images, sounds and videos of yours.

Without --image, --audio, --video, --loss-drop, --write, --compare and --push, the run is scored.
"""

import sys
from importlib.util import find_spec

if sys.version_info < (3, 11):  # noqa: UP036 an older Python must get this far, so the file has no newer syntax
    sys.exit("error: Periscope needs Python 3.11 or newer, and this is {}.{}".format(*sys.version_info))
if find_spec("periscope") is None:
    sys.exit("error: Periscope isn't installed in this Python; run this in the cloned folder first: pip install -e .")

from pathlib import Path

from periscope.console import announce, run, spelled
from periscope.device import choose_device
from periscope.evaluation.config import check_places, read_config
from periscope.shards.sharing.names import hub_set, is_hub_set

EXAMPLES = [
    ("", "score the newest run"),
    ('--run runs/first --image cat.jpg --prompt "What is on the table?"', ""),
    ("--run runs/first --image cat.jpg", "chat about an image"),
    ("--task vqav2 --features features/vqav2", "score on a benchmark"),
    ("--loss-drop train --write good.jsonl", "leave out bad captions"),
    ("--data photos/ --write new.jsonl", "write new captions"),
    ("--compare runs/*", ""),
    ("--run runs/first --push user/name", ""),
]


def main() -> None:
    """Read the flags and do what they ask."""
    examples = [f"python eval.py {flags:<{40 if about else 0}}{about}".rstrip() for flags, about in EXAMPLES]
    config = read_config(None, spelled("eval.py"), str(__doc__), examples)
    if config.scoring.tasks:
        from periscope.evaluation.tasks.benchmarks import listing

        return print(listing())
    if config.comparison.compare:
        from periscope.evaluation.report.compare import write_comparison

        return write_comparison(config.comparison.compare, config.comparison.out)

    announce(f"eval: {' '.join(config.run) or 'the newest run'}")
    check_places(config)
    device = choose_device(config.models.device)
    if is_hub_set(config.scoring.features):
        from periscope.shards.sharing.fetch import fetch

        config.scoring.features = fetch(hub_set(config.scoring.features))
    from periscope.evaluation import commands
    from periscope.evaluation.scored_run import named_runs
    from periscope.training.run import newest_run

    adapters = named_runs(config.run) or {None: newest_run(Path("runs"))}
    media, texts = config.media, config.texts
    if config.sharing.push:
        commands.push(adapters, config.sharing.push, config.sharing, config.models, device)
    elif media:
        commands.respond(adapters, media, config.prompt, config.answers, config.models, device)
    elif texts.write and config.scoring.data and not texts.loss_drop:
        commands.caption_folder(adapters, config.scoring.data, texts.write, config.answers, config.models, device)
    else:
        act = commands.rank_texts if texts.loss_drop else commands.caption_set if texts.write else commands.score
        ((modality, path),) = adapters.items()
        act(path, modality, config, device)


if __name__ == "__main__":
    run(main)
