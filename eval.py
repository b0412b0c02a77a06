"""Answer and score: what was held out with the control beside it, or one live picture, sound or clip.

python eval.py                                                      the newest run on what it held out
python eval.py --task vqav2 --features features/vqav2               as a benchmark is scored; --tasks shows them
python eval.py --gain train --write good.jsonl                      texts ranked by what looking gains; the good ones
python eval.py --data photos/ --write captions.jsonl                new captions
python eval.py --run runs/first --image cat.jpg --prompt "What is on the table?"
python eval.py --run runs/first --image cat.jpg                     a chat about it
python eval.py --run runs/clips --video cat.mp4 --prompt ""         a caption; --audio for a sound
python eval.py --run image=runs/first audio=runs/ears --image cat.jpg --audio purr.wav --prompt "<image> <audio> Is it?"
python eval.py --run runs/first --push user/name                    share it
python eval.py --compare runs/*                                     what differed, what it did, what it cost
"""

import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from adapters import AdapterError
from console import choose_device, run
from training import RunError

SHOWN = 6  # of the texts that --gain ranks


@dataclass
class Options:
    """What to look at, and with what."""

    run: tuple[str, ...] = ()
    """A run, or with --image also an adapter folder, or several by modality, as image=runs/a audio=runs/b (default: the
    newest run)."""
    image: tuple[Path, ...] = ()
    """Pictures to answer about, through the real encoder."""
    audio: tuple[Path, ...] = ()
    """Sounds to answer about."""
    video: tuple[Path, ...] = ()
    """Clips to answer about."""
    prompt: str | None = None
    """What to ask about them, <image>, <audio> and <video> saying where the next of each stands ("" for a caption; not
    given: a chat)."""
    features: Path | None = None
    """Feature set to be scored on (default: the one the run was trained on)."""
    text: Path | None = None
    """Another texts file for the same media (default: the one the run was trained on)."""
    partial: bool = False
    """Accept a texts file that names media the feature set lacks; they are counted and left out."""
    data: Path | None = None
    """The folder of media the features come from, so that report.html can play sounds and show a clip's frames; with
    --write, media to caption."""
    compare: tuple[Path, ...] = ()
    """Runs to put side by side in a table and a picture; no model is loaded."""
    out: Path = Path("runs/compare.md")
    """Where the table of --compare goes; the picture stands beside it as .png."""
    gain: str = ""
    """Rank the texts of this split (train, heldout ..., or all) by what looking gains on each; empty: off."""
    drop: float = 0.0
    """Share of the ranked texts, the worst, that --write leaves out; 0: those that cost more with their medium."""
    write: Path | None = None
    """A texts file for train.py --text: with --gain all texts without the worst; else new captions, of the media of
    --data or of the feature set."""
    lm: str | None = None
    """Where the run's language model is now, if it has moved."""
    precision: Literal["auto", "fp32", "fp16", "bf16", "8bit", "4bit"] = "auto"
    """How the frozen weights are held; need not be as in training."""
    batch: int = 64
    """Answers generated at once; changes speed and memory, not the answers."""
    limit: int = 0
    """Score the first so many held-out texts of each split only (0: all)."""
    controls: tuple[Literal["shuffled", "blank", "none"], ...] = ("shuffled", "blank", "none")
    """Answers to compare with: from another medium's features, from their mean, without any."""
    task: str = ""
    """Score as this benchmark does, with its prompt and decoding (--tasks shows them); empty: as the texts say."""
    prompt_of: str = ""
    """Whose prompt of the task's: cobra, mamba-vl, or own, as the adapter was trained; empty: the task's first."""
    tasks: bool = False
    """Show the tasks, and leave."""
    clip_score: bool = False
    """CLIPScore of captions too, by the text tower of the encoder (open_clip's), which is loaded for it."""
    beams: int = 0
    """Beams of the search for an answer; 1: greedy, 0: as the task has it, else greedy."""
    max_new_tokens: int = 0
    """Longest answer, in tokens; 0: as the task has it, else 64."""
    anyway: bool = False
    """Take another language model or encoder than the adapter was trained with, if its sizes are the same."""
    push: str = ""
    """Share the adapter as OWNER/NAME on the Hugging Face Hub, after showing all that would leave."""
    yes: bool = False
    """With --push: don't ask."""
    private: bool = False
    """With --push: make the repository a private one."""
    public_samples: bool = False
    """With --push: also share a few held-out prompts, references and pictures."""
    license: str = ""
    """With --push: the adapter's licence, as the Hub spells it (mit, apache-2.0, cc-by-4.0 ...)."""
    dataset: tuple[str, ...] = ()
    """With --push: hub ids of what it was trained on."""
    device: str = "auto"
    """auto, cuda, cuda:N or cpu."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.tasks:
        from scoring.benchmarks import listing

        return print(listing())
    if options.batch < 1 or min(options.limit, options.max_new_tokens, options.beams) < 0:
        raise RunError("--batch must be at least 1, and --limit, --max-new-tokens and --beams can't be negative")
    if not 0 <= options.drop < 1:
        raise RunError(f"--drop {options.drop} isn't a share: it must be at least 0 and below 1")
    if options.compare:
        return compare(options.compare, options.out)
    device = choose_device(options.device)
    from training.run import newest_run

    paths = named_runs(options.run) or {None: newest_run(Path("runs"))}
    media = {name: list(given) for name in ("image", "audio", "video") if (given := getattr(options, name))}
    if options.push:
        publish(paths, options, device)
    elif media:
        look(paths, media, replace(options, max_new_tokens=options.max_new_tokens or 64), device)
    elif options.prompt is not None:
        raise RunError("--prompt asks about a picture, sound or clip: pass --image, --audio or --video FILE with it")
    elif len(paths) > 1:
        raise RunError("several adapters together answer about media: pass --image, --audio or --video FILE with them")
    else:
        ((modality, path),) = paths.items()
        act = weigh if options.gain else caption if options.write else score
        act(path, options, device, modality)


def named_runs(given: tuple[str, ...]) -> dict[str | None, Path]:
    """--run's PATH, or MODALITY=PATH ...: modality (None where none is named) -> path."""
    named = {}
    for one in given:
        name, equals, path = one.partition("=")
        modality, path = (name, path) if equals and name in ("image", "audio", "video") else (None, one)
        if modality in named or None in named or (named and modality is None):
            raise RunError(
                f"--run {' '.join(given)}: name one run, or one for each modality, as image=runs/a audio=runs/b"
            )
        named[modality] = Path(path)
    return named


def opened(path: Path, options: Options, device: str, modality: str | None = None) -> tuple:
    """The run's folder, the feature set, its texts about media, the model and the adapter's config. Raises RunError
    when they don't fit.
    """
    from live import adapter_folders, load_adapted
    from shards.read import FeatureSet
    from training.data import feature_shape
    from training.run import Run

    folder = Run.open(path)
    settings = folder.config
    features = FeatureSet(options.features or scored_set(settings["features"], modality))
    if modality is None and len(adapter_folders(path)) > 1:
        modality = features.manifest["modality"]
    model, config = load_adapted(path, device, options.precision, options.lm, modality, options.anyway)
    check_encoder(features, config, options.anyway)
    if feature_shape(features, model.adapter.features.kind) != model.adapter.features:
        raise RunError(
            f"{features.path} holds features of another shape than the adapter reads; encode it as in training"
        )
    step = folder.step_folder().name
    print(f"{path}: {step} steps, language model {model.lm.precision} ({model.lm.reason})")
    texts = [text for text in features.texts(options.text or settings.get("text"), options.partial) if text.media]
    return folder, features, texts, model, config


def score(path: Path, options: Options, device: str, modality: str | None = None) -> None:
    """Answer every held-out text with its medium and under each control; write and print the scores."""
    from evaluation import all_scores, choose, clip_scores, pick, predict, write
    from precompute.encoders import load_encoder_like
    from scoring.sheet import contact_sheet
    from scoring.summary import swapped, warnings_of
    from scoring.table import as_numbers, table

    folder, features, texts, model, config = opened(path, options, device, modality)
    step = folder.step_folder().name
    outside = [text for text in texts if text.split != "train"]
    if not outside:
        raise RunError(f"{features.path} holds out no text that could be scored; only its media were encoded")
    chosen, outside = choose(options.task, options.prompt_of, outside, options.max_new_tokens, options.beams)
    if chosen.task:
        how, note = (f"{chosen.beams} beams" if chosen.beams > 1 else "greedy"), chosen.task.note
        print(f"task: {chosen.task.title}, prompt of {chosen.system} {chosen.prompt!r}, {how}, "
              f"at most {chosen.max_new_tokens} tokens{f'; {note}' if note else ''}")  # fmt: skip
    splits = sorted({text.split for text in outside}, key=lambda split: (split != "heldout", split))
    encoder = load_encoder_like(config["encoder"], device) if options.clip_score else None
    result, rows = {"version": 1}, {}
    for split in splits:
        part = [text for text in outside if text.split == split][: options.limit or None]
        rows[split] = predict(model, features, part, chosen, options.controls, options.batch)
        print()
        more = clip_scores(rows[split], features, encoder) if encoder else {}
        found, said = all_scores(rows[split], texts, chosen, more)
        said += warnings_of(rows[split], found, chosen.task.kinds if chosen.task else "")
        numbers = as_numbers(found) | {"swapped": swapped(rows[split]), "n": len(rows[split]), "warnings": said}
        result = result | numbers if split == splits[0] else result
        result.setdefault("splits", {})[split] = numbers
        print(table(f"{split}: {len(rows[split])} answers", found))
        if other := numbers["swapped"]:
            print(f"  with another medium's features, {other['n']} questions valid for both are right for that "
                  f"other one at {other['qa_accuracy']:.3f} (for their own: {other['real']:.3f})")  # fmt: skip
        for warning in said:
            print(f"  {warning}")
    result |= chosen.facts() | {"run": str(path), "step": step, "features": str(features.path)}

    shown = pick(rows[splits[0]])
    sheet = contact_sheet(shown, [features.thumbnail(row.media.split()[0]) for row in shown])
    predictions = [{"split": split, **asdict(row)} for split in splits for row in rows[split]]
    print(f"written: {write(folder, result, predictions, sheet)}, {path}/predictions.jsonl, {path}/samples.png")
    print(f"written: {write_report(path, features, options.data)}; open it in a browser")


def weigh(path: Path, options: Options, device: str, modality: str | None = None) -> None:
    """Rank texts by what looking gains on each; with --write, write the set's texts without the worst."""
    from captioning import gain_lines, ranked, without, worst, write_lines
    from training.data import question_of

    _, features, texts, model, _ = opened(path, options, device, modality)
    chosen = [text for text in texts if options.gain in ("all", text.split)][: options.limit or None]
    found = ranked(model, features, chosen, options.batch)
    dropped = worst(found, options.drop)
    print(f"gain from looking, nats per token, of {len(found)} texts ({sum(one.gain < 0 for one in found)} below 0); "
          "the least explained:")  # fmt: skip
    for one in found[:SHOWN]:
        asked = question_of(one.text)
        words = f"{asked} {one.text.turns[-1]['content']}" if asked else one.text.turns[-1]["content"]
        print(f"  {one.gain:7.2f}  {features.info(one.text.media[0])['origin']}  {' '.join(words.split())[:80]}")
    print(f"written: {path}/gain.jsonl, {write_lines(gain_lines(found, features), path / 'gain.jsonl')} lines")
    if options.write:
        left = write_lines(without(texts, dropped), options.write)
        print(f"written: {options.write}, {left} texts, without {len(dropped)} whose media don't explain them; "
              f"train on them with --text {options.write}")  # fmt: skip


def caption(path: Path, options: Options, device: str, modality: str | None = None) -> None:
    """Write a new caption for each medium of --data, else of the feature set."""
    from captioning import captions_of_folder, captions_of_set, write_lines

    most = options.max_new_tokens or 64
    if options.data:
        import live

        named = {modality: path} if modality else {"path": path}
        eyes = live.load(**named, device=device, precision=options.precision, lm=options.lm, anyway=options.anyway)
        lines = captions_of_folder(eyes, options.data, options.batch, most)
    else:
        _, features, _, model, _ = opened(path, options, device, modality)
        lines = captions_of_set(model, features, options.batch, most)
    print(f"written: {options.write}, {write_lines(lines, options.write)} captions; train on them with --text")


def scored_set(trained: str | list[str], modality: str | None) -> str:
    """Of the feature sets that a run was trained on, the one to score: the first, or the first of a modality."""
    from shards.read import FeatureSet
    from training.mix import named_sets

    paths = list(named_sets(trained))
    fitting = [path for path in paths if modality in (None, FeatureSet(path).manifest["modality"])] or paths
    if others := [path for path in paths if path != fitting[0]]:
        print(f"features: {fitting[0]}; trained on {', '.join(others)} too, which --features names to score them")
    return fitting[0]


def check_encoder(features, config: dict, anyway: bool = False) -> None:
    """Refuse features of another encoder than the adapter was trained on, or with `anyway` say so."""
    theirs, ours = features.manifest["encoder"], config["encoder"]
    if theirs["fingerprint"] != ours["fingerprint"]:
        other = (
            f"{features.path} was made with encoder {theirs['name']}, but the adapter was trained on {ours['name']} "
            "(weights, layer or preprocessing differ)"
        )
        if not anyway:
            raise RunError(f"{other}; encode the media with that one")
        print(f"note: {other}")
    held, read = features.manifest["features"].get(config["features"]["kind"], {}), config.get("storage")
    if read and held.get("codec") != read.get("codec"):
        print(f"note: {features.path} stores {held.get('codec')}, the adapter was trained on {read.get('codec')}")


def write_report(path: Path, features, data: Path | None) -> Path:
    """Write report.html into a run that was scored on `features`, whose media may lie in the folder `data`."""
    from precompute.preview import preview
    from scoring.report import Medium, report
    from scoring.runs import RunFolder
    from shards.atomic import replace_bytes

    def medium(key: str) -> Medium:
        if key not in known:
            return Medium(name=key, note="not in this feature set")
        pictures, sound, note = preview(features, key, data)
        return Medium(tuple(pictures), sound, features.info(key)["origin"], note)

    known = set(features.keys)
    replace_bytes(path / "report.html", report(RunFolder(path), medium).encode())
    return path / "report.html"


def publish(paths: dict, options: Options, device: str) -> None:
    """Push one adapter to the Hub, if the person at the keyboard agrees to what would leave."""
    from sharing import Share, share

    if len(paths) > 1:
        raise RunError("--push shares one adapter at a time: name one --run")

    def ask(shown: str) -> bool:
        print(shown)
        try:
            return options.yes or input("push this? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    ((modality, path),) = paths.items()
    what = Share(path, options.push, modality, options.lm, options.license or None, options.dataset, options.private,
                 options.public_samples)  # fmt: skip
    print(share(what, ask, device, options.precision))


def compare(paths: tuple[Path, ...], out: Path) -> None:
    """Print the table of several runs, and write it and its picture."""
    import io

    from scoring.compare import open_runs, picture, table
    from shards.atomic import replace_bytes

    runs = open_runs(paths)
    print(text := table(runs))
    drawn = io.BytesIO()
    picture(runs).save(drawn, "PNG")
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(out, text.encode())
    replace_bytes(out.with_suffix(".png"), drawn.getvalue())
    print(f"written: {out}, {out.with_suffix('.png')}")


def look(paths: dict, media: dict[str, list[Path]], options: Options, device: str) -> None:
    """Answer about pictures, sounds and clips; without a prompt, go on answering until the input ends."""
    import live

    how = {"device": device, "precision": options.precision, "lm": options.lm, "anyway": options.anyway}
    eyes = live.load(paths[None], **how) if None in paths else live.load(**paths, **how)
    refuse_unread(eyes, media)
    if options.prompt is not None:
        return print(said(eyes, media, options.prompt, options.max_new_tokens))
    turns = " or ".join(f"/{modality}" for modality in eyes.readers)
    print(f"about {listed(media)}; an empty line captions, {turns} FILE ... changes what it is about, /quit ends")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line.partition(" ")[0] in ("/image", "/audio", "/video"):
            media = change(eyes, media, line)
            continue
        try:
            print(said(eyes, media, line, options.max_new_tokens))
        except AdapterError as error:
            print(error, file=sys.stderr)


def said(eyes, media: dict, line: str, most: int) -> str:
    """The answer to a question about media; a caption where there is no question."""
    return eyes.ask(media, line, most) if line else eyes.caption(media, most)


def refuse_unread(eyes, media: dict) -> None:
    """Refuse media that no adapter reads, and read the others. Raises RunError, PrecomputeError."""
    for modality, files in media.items():
        if files and modality not in eyes.readers:
            raise RunError(f"{files[0]} was given as {modality}, and the adapter reads {' and '.join(eyes.readers)}")
        for file in files:
            eyes.features(file, modality)


def change(eyes, media: dict, line: str) -> dict:
    """Take up other files, as `/image a.jpg b.jpg` says (none: drop these), or keep the old ones and say why."""
    from precompute import PrecomputeError

    turn, _, rest = line.partition(" ")
    try:
        names = [rest] if Path(rest).is_file() else shlex.split(rest)
        refuse_unread(eyes, {turn[1:]: [Path(name) for name in names]})
    except (PrecomputeError, RunError, ValueError) as error:
        print(f"{error}; still about {listed(media)}", file=sys.stderr)
        return media
    return {name: files for name, files in (media | {turn[1:]: [Path(name) for name in names]}).items() if files}


def listed(media: dict) -> str:
    """Media as people read them."""
    return " ".join(str(file) for files in media.values() for file in files) or "nothing"


if __name__ == "__main__":
    run(main)
