"""What eval.py and the `periscope` command do with a config: score, rank texts, caption, answer, push, compare."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from periscope import inference
from periscope.console import agreed, command, styled
from periscope.errors import RunError
from periscope.evaluation import captioning, loss_drop
from periscope.evaluation.chat import captions_only_note, chat, check_media, grouped, reply, show, unasked
from periscope.evaluation.config import (
    AnswerOptions,
    DecodingOptions,
    EvalConfig,
    LanguageModelOptions,
    ModelOptions,
    PushOptions,
)
from periscope.evaluation.predict import MAX_NEW_TOKENS, by_split, choose_task, predict, read_answers, stand_ins_of
from periscope.evaluation.report.write import write_report, write_scores
from periscope.evaluation.scored_run import ScoredRun, by_modality, open_scored
from periscope.evaluation.scoring.clip import clip_scores, refuse_clip_score
from periscope.evaluation.scoring.losses import loss_pair
from periscope.evaluation.scoring.prediction import Prediction
from periscope.evaluation.scoring.scores import Scores, all_scores
from periscope.evaluation.scoring.summary import summarise
from periscope.evaluation.scoring.verdict import Verdict, loss_verdict
from periscope.evaluation.sharing import PushRequest, share
from periscope.precompute.encoders import load_encoder_like
from periscope.text import printable
from periscope.training.data.dataset import question_of

WORST_SHOWN = 6  # of the texts that were ranked

Adapters = Mapping[str | None, Path]  # modality (None where none is named) -> run, adapter folder or Hub name


def score(path: Path, modality: str | None, config: EvalConfig, device: str) -> None:
    """Answer every held-out text with its medium and under each control; print and write the scores."""
    options = config.scoring
    run = open_scored(path, modality, options, config.models, device)
    candidates = read_answers(options.answers) if options.answers else ()
    chosen, texts = choose_task(options.task, options.prompt_of, run.held_out(), config.answers, candidates)
    if chosen.task:
        print(f"task: {chosen}")
    encoder = None
    if options.clip_score:
        refuse_clip_score(run.features, texts)
        encoder = load_encoder_like(run.config.encoder, device, moved=next(iter(config.models.encoder), None))

    if run.asks is False and any(question_of(text) for text in texts):
        text = ("--text", options.text) if options.text else ()
        mend = command("train", "--init", run.path, "--features", run.features.path, *text)
        print(captions_only_note("this adapter", mend))
    parts = by_split(texts, options.limit)
    about = {"run": str(path), "step": run.step, "features": str(run.features.path)}
    predictions: dict[str, list[Prediction]] = {}
    numbers: dict[str, dict] = {}
    complete: dict[str, list[str]] = {split: [] for split in parts}
    batch = config.answers.batch

    def write(finished: bool) -> None:
        first_split = next(iter(numbers.values()))
        state = {"finished": finished, "complete": complete}
        write_scores(
            run.path, {"version": 1} | first_split | {"splits": numbers} | chosen.facts() | about | state,
            predictions, run.features,
        )  # fmt: skip
        write_report(run.path, run.features, options.data)

    for split, part in parts.items():
        stand_in = stand_ins_of(run.features, part)
        losses = loss_pair(run.model, run.features, part, stand_in, batch)
        decided = loss_verdict(split, losses)
        if decided:
            print(styled(decided.sentence, decided.style))
        found: Scores = {}
        notes = run.restrictions(options.limit)
        shown = ""
        for condition, rows in predict(run.model, run.features, part, chosen, options.controls, batch, stand_in):
            predictions[split] = rows
            extra = clip_scores(rows, run.features, encoder, [condition]) if encoder else {}
            found, new_notes = all_scores(rows, run.texts, chosen.measures, chosen.kinds, extra, found)
            notes = list(dict.fromkeys([*notes, *new_notes]))
            complete[split].append(condition)
            numbers[split], shown = summarise(split, rows, found, notes, chosen.kinds, losses)
            write(finished=False)  # a crash or Ctrl-C later loses nothing
        told = Verdict(**numbers[split]["verdict"])
        if not decided:
            print(f"\n{styled(told.sentence, told.style)}", end="")
        print(f"\n{shown.removeprefix(told.sentence).lstrip()}")

    write(finished=True)
    print(f"written: {run.path}/eval.json, predictions.jsonl, samples.png, and report.html to open in a browser")


def rank_texts(path: Path, modality: str | None, config: EvalConfig, device: str) -> None:
    """Rank texts by their loss drop; with --write, also write the set's texts without the worst."""
    options = config.texts
    run = open_scored(path, modality, config.scoring, config.models, device)
    chosen = run.of_split(options.loss_drop)[: config.scoring.limit or None]
    drops = loss_drop.rank_texts(run.model, run.features, chosen, config.answers.batch)
    below = sum(each.drop < 0 for each in drops)
    print(f"loss drop with the medium, nats per token, of {len(drops)} texts ({below} below 0); the lowest:")
    for each in drops[:WORST_SHOWN]:
        print(f"  {each.drop:7.2f}  {printable(loss_drop.one_line(each, run.features))}")
    ranking = run.path / "gain.jsonl"
    count = captioning.write_lines(loss_drop.jsonl_lines(drops, run.features), ranking)
    print(f"written: {ranking}, {count} lines")
    if options.write:
        dropped = loss_drop.worst(drops, options.drop)
        left = captioning.write_lines(loss_drop.without(run.texts, dropped), options.write)
        print(f"written: {options.write}, {left} texts, without {len(dropped)} whose media don't explain them")
        print(f"Next: {_training_on(options.write, run)}")


def caption_set(path: Path, modality: str | None, config: EvalConfig, device: str) -> None:
    """Write a new caption for each medium of the feature set."""
    out = _written_file(config)
    run = open_scored(path, modality, config.scoring, config.models, device)
    decoding = config.answers.decoding(MAX_NEW_TOKENS)
    lines = captioning.captions_of_set(run.model, run.features, config.answers.batch, decoding)
    count = captioning.write_lines(lines, out)
    print(f"written: {out}, {count} captions")
    print(f"Next: {_training_on(out, run)}")


def caption_folder(
    adapters: Adapters, data: Path, out: Path, answers: AnswerOptions, models: ModelOptions, device: str
) -> None:
    """Write a new caption for each medium of a folder."""
    decoding = answers.decoding(MAX_NEW_TOKENS)
    loaded = load_models(adapters, models, device)
    count = captioning.write_lines(captioning.captions_of_folder(loaded, data, answers.batch, decoding), out)
    print(f"written: {out}, {count} captions; train on them with --text {out}")


def recaption_folder(
    name: str, prompt: str, data: Path, out: Path, answers: AnswerOptions, models: ModelOptions, device: str
) -> None:
    """Write a caption by another model for each image of a folder."""
    from periscope.evaluation.recaptioning import PROMPT, Captioner, recaption

    decoding, prompt = answers.decoding(MAX_NEW_TOKENS), prompt or PROMPT
    captioner = Captioner(name, prompt, decoding, device, models.precision)
    about = {"with": name, "prompt": prompt, "decoding": str(decoding), "max_new_tokens": decoding.max_new_tokens}
    count, before = recaption(captioner, data, out, answers.batch, about)
    earlier = f", {before} of them before it was stopped" if before else ""
    print(f"written: {out}, {count} captions by {name}{earlier}; train on them with --text {out}")


def respond(
    adapters: Adapters,
    media: Mapping[str, Sequence[Path]] | Sequence[Path],
    prompt: str | None,
    answers: DecodingOptions,
    models: ModelOptions,
    device: str,
) -> None:
    """Answer about media; without a prompt, chat about them until the input ends.

    media: modality -> files, or files whose modality their names tell.
    """
    decoding = answers.decoding(inference.CHAT_TOKENS if prompt is None else MAX_NEW_TOKENS)
    loaded = load_models(adapters, models, device)
    if not isinstance(media, Mapping):
        media = grouped(loaded, media)
    check_media(loaded, media)
    if prompt is None:
        chat(loaded, media, decoding)
    else:
        if prompt and (note := unasked(loaded, media)):
            print(note, file=sys.stderr)
        show(reply(loaded, media, prompt, decoding))


def load_models(adapters: Adapters, models: ModelOptions, device: str) -> inference.LoadedModel:
    """The adapters with their encoders on their language model."""
    moved = by_modality("--encoder", models.encoder)
    encoder = moved[None] if None in moved else {str(modality): place for modality, place in moved.items()}
    options: dict[str, Any] = {
        "device": device,
        "precision": models.precision,
        "lm": models.lm or None,
        "anyway": models.anyway,
        "encoder": encoder,
        "trust_remote_code": models.trust_remote_code,
        "runtime": models.runtime,
    }
    if None in adapters:
        return inference.load(adapters[None], **options)
    options |= {str(modality): path for modality, path in adapters.items()}
    return inference.load(**options)


def push(adapters: Adapters, to: str, options: PushOptions, models: LanguageModelOptions, device: str) -> None:
    """Push one adapter to the Hub, after the user has agreed to everything that would be uploaded."""
    if len(adapters) > 1:
        raise RunError("one adapter is pushed at a time: name one run")

    ((modality, path),) = adapters.items()
    request = PushRequest(
        path,
        to,
        modality,
        lm=models.lm or None,
        license=options.license or None,
        datasets=options.dataset,
        private=options.private,
        public_samples=options.public_samples,
        benchmark=options.benchmark,
    )
    told = share(
        request, lambda contents: agreed(contents, options.yes), device, models.precision, models.trust_remote_code
    )
    print(told)


def _training_on(texts: Path, run: ScoredRun) -> str:
    """The command that trains a new adapter like the run's on a texts file."""
    lm = run.place.run.config.lm if run.place.run else run.config.language_model.name
    return command(
        *("train", "--features", run.features.path, "--text", texts, "--lm", str(lm)),
        *("--adapter", run.config.adapter),
    )


def _written_file(config: EvalConfig) -> Path:
    if config.texts.write is None:
        raise RunError("captions need a file to be written to: --write FILE")
    return config.texts.write
