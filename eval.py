"""Answer and score: what a run held out, with the controls beside it, or one live picture, sound or clip.

    python eval.py                                     the newest run
    python eval.py --run runs/first --image cat.jpg --prompt "What is on the table?"
    python eval.py --run runs/first --image cat.jpg    a chat about it
    python eval.py --task vqav2 --features features/vqav2
    python eval.py --gain train --write good.jsonl     leaves bad captions out
    python eval.py --data photos/ --write new.jsonl    new captions
    python eval.py --compare runs/*
    python eval.py --run runs/first --push user/name

Without --image, --audio, --video, --gain, --write, --compare and --push it scores.
"""

import sys
from importlib.util import find_spec

if find_spec("periscope") is None:
    sys.exit("error: Periscope isn't installed in this Python; run this in the cloned folder first: pip install -e .")

from pathlib import Path

from periscope.console import run
from periscope.device import choose_device
from periscope.errors import RunError
from periscope.evaluation.options import EvalConfig, read_options

SHOWN = 6  # of the texts that --gain ranks
MOST_TOKENS = 64  # of an answer, where no task says otherwise


def main() -> None:
    options = read_options(__doc__)
    if options.scores.tasks:
        from periscope.evaluation.tasks.benchmarks import listing

        return print(listing())
    if options.comparison.compare:
        return compare(options.comparison.compare, options.comparison.out)
    device = choose_device(options.models.device)

    from periscope.evaluation.scored_run import named_runs
    from periscope.training.run import newest_run

    paths = named_runs(options.run) or {None: newest_run(Path("runs"))}
    if options.sharing.push:
        publish(paths, options, device)
    elif options.media:
        look(paths, options, device)
    elif options.prompt is not None:
        raise RunError("--prompt asks about a picture, sound or clip: pass --image, --audio or --video FILE with it")
    elif len(paths) > 1:
        raise RunError("several adapters together answer about media: pass --image, --audio or --video FILE with them")
    else:
        ((modality, path),) = paths.items()
        act = weigh if options.words.gain else caption if options.words.write else score
        act(path, modality, options, device)


def score(path: Path, modality: str | None, options: EvalConfig, device: str) -> None:
    """Answer every held-out text with its medium and under each control; write and print the scores."""
    from periscope.evaluation.asking import by_split, choose, predict
    from periscope.evaluation.scored_run import open_scored
    from periscope.evaluation.scores import all_scores, clip_scores, refuse_clip_score, summary
    from periscope.evaluation.written import write_report, write_scores
    from periscope.precompute.encoders import load_encoder_like

    how, models = options.scores, options.models
    run = open_scored(path, modality, how, models, device)
    chosen, texts = choose(how.task, how.prompt_of, run.held_out(), models.max_new_tokens, models.beams)
    if chosen.task:
        print(f"task: {chosen}")
    if how.clip_score:
        refuse_clip_score(run.features, texts)
    moved = next(iter(models.encoder), None)
    encoder = load_encoder_like(run.config["encoder"], device, moved=moved) if how.clip_score else None

    predictions, numbers = {}, {}
    for split, part in by_split(texts, how.limit).items():
        rows = predictions[split] = predict(run.model, run.features, part, chosen, how.controls, models.batch)
        more = clip_scores(rows, run.features, encoder) if encoder else {}
        found, said = all_scores(rows, run.texts, chosen, more)
        numbers[split], shown = summary(split, rows, found, [*run.partial(how.limit), *said], chosen.kinds)
        print(f"\n{shown}")

    first = next(iter(numbers.values()))
    about = {"run": str(path), "step": run.step, "features": str(run.features.path)}
    write_scores(run.folder, {"version": 1} | first | {"splits": numbers} | chosen.facts() | about, predictions,
                 run.features)  # fmt: skip
    write_report(path, run.features, how.data)
    print(f"written: {path}/eval.json, predictions.jsonl, samples.png, and report.html to open in a browser")


def weigh(path: Path, modality: str | None, options: EvalConfig, device: str) -> None:
    """Rank texts by what looking gains on each; with --write, write the set's texts without the worst."""
    from periscope.evaluation.captioning import gain_lines, ranked, shown, without, worst, write_lines
    from periscope.evaluation.scored_run import open_scored

    words = options.words
    run = open_scored(path, modality, options.scores, options.models, device)
    chosen = run.of_split(words.gain)[: options.scores.limit or None]
    found = ranked(run.model, run.features, chosen, options.models.batch)
    print(f"gain from looking, nats per token, of {len(found)} texts ({sum(one.gain < 0 for one in found)} below 0); "
          "the least explained:")  # fmt: skip
    for one in found[:SHOWN]:
        print(f"  {one.gain:7.2f}  {shown(one, run.features)}")
    print(f"written: {path}/gain.jsonl, {write_lines(gain_lines(found, run.features), path / 'gain.jsonl')} lines")
    if words.write:
        dropped = worst(found, words.drop)
        left = write_lines(without(run.texts, dropped), words.write)
        print(f"written: {words.write}, {left} texts, without {len(dropped)} whose media don't explain them; "
              f"train on them with --text {words.write}")  # fmt: skip


def caption(path: Path, modality: str | None, options: EvalConfig, device: str) -> None:
    """Write a new caption for each medium of --data, else of the feature set."""
    from periscope.evaluation.captioning import captions_of_folder, captions_of_set, write_lines
    from periscope.evaluation.scored_run import open_scored

    models, out, most = options.models, options.words.write, options.models.max_new_tokens or MOST_TOKENS
    if options.scores.data:
        lines = captions_of_folder(load({modality: path}, options, device), options.scores.data, models.batch, most)
    else:
        run = open_scored(path, modality, options.scores, models, device)
        lines = captions_of_set(run.model, run.features, models.batch, most)
    print(f"written: {out}, {write_lines(lines, out)} captions; train on them with --text")


def look(paths: dict[str | None, Path], options: EvalConfig, device: str) -> None:
    """Answer about pictures, sounds and clips; without a prompt, go on answering until the input ends."""
    from periscope.evaluation.chat import chat, refuse_unread, said

    most = options.models.max_new_tokens or MOST_TOKENS
    eyes = load(paths, options, device)
    refuse_unread(eyes, options.media)
    if options.prompt is None:
        chat(eyes, options.media, most)
    else:
        print(said(eyes, options.media, options.prompt, most))


def load(paths: dict[str | None, Path], options: EvalConfig, device: str):
    """The adapters with their encoders and language model, as `live.Live`."""
    from periscope import inference as live
    from periscope.evaluation.scored_run import by_modality

    models, moved = options.models, by_modality("--encoder", options.models.encoder)
    how = {"device": device, "precision": models.precision, "lm": models.lm or None, "anyway": models.anyway,
           "encoder": moved.get(None, moved)}  # fmt: skip
    return live.load(paths[None], **how) if None in paths else live.load(**paths, **how)


def publish(paths: dict, options: EvalConfig, device: str) -> None:
    """Push one adapter to the Hub, if the person at the keyboard agrees to what would leave."""
    from periscope.evaluation.sharing import PushRequest, share

    if len(paths) > 1:
        raise RunError("--push shares one adapter at a time: name one --run")

    def ask(shown: str) -> bool:
        print(shown)
        try:
            return options.sharing.yes or input("push this? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    ((modality, path),), sharing = paths.items(), options.sharing
    what = PushRequest(
        *(path, sharing.push, modality, options.models.lm or None, sharing.license or None),
        *(sharing.dataset, sharing.private, sharing.public_samples),
    )
    print(share(what, ask, device, options.models.precision))


def compare(paths: tuple[Path, ...], out: Path) -> None:
    """Print the table of several runs, and write it and its picture."""
    import io

    from periscope.evaluation.report.compare import open_runs, picture, table
    from periscope.shards.atomic import replace_bytes

    beside = out.with_suffix(".png")
    if beside == out or out.is_dir():
        raise RunError(f"--out {out} is where the table goes, as in runs/compare.md; the picture stands beside it")
    runs = open_runs(paths)
    print(text := table(runs))
    drawn = io.BytesIO()
    picture(runs).save(drawn, "PNG")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(out, text.encode())
        replace_bytes(beside, drawn.getvalue())
    except OSError as error:
        raise RunError(f"--out {out} can't be written: {error.strerror or error}") from None
    print(f"written: {out}, {beside}")


if __name__ == "__main__":
    run(main)
