"""One training in progress: what train.py prepares, steps through and finishes."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from periscope.adapters.composed import ComposedModel
from periscope.adapters.constant_prefix import leading_ids
from periscope.adapters.io.checkpoint import describe_adapter, save_adapter
from periscope.adapters.io.schema import LANGUAGE_MODEL
from periscope.adapters.lm.gradient_checkpointing import checkpoint_layers
from periscope.adapters.lm.identity import LanguageModelIdentity
from periscope.adapters.lm.language_model import LanguageModel, unfreeze
from periscope.adapters.lm.lora import FOLDER as LORA_FOLDER
from periscope.adapters.lm.lora import add_lora, load_lora, lora_parameters
from periscope.adapters.lm.precision import trained_precision
from periscope.adapters.model import AdaptedModel, PassShape
from periscope.adapters.names import parse_lora
from periscope.console import command, spelled
from periscope.device import peak_memory, rules_of
from periscope.errors import RunError
from periscope.evaluation.controls import evenly
from periscope.evaluation.training_scores import training_scores
from periscope.training.config import TrainConfig
from periscope.training.data.dataset import Batch, not_finite_media
from periscope.training.data.mix import MixedSteps
from periscope.training.data.samples import describe_samples
from periscope.training.data.shift import captions_come_back
from periscope.training.data.steps import TrainingSteps
from periscope.training.data.training_set import (
    OpenedSet,
    TrainingSet,
    choose_texts,
    first_by_modality,
    identity_of,
    make_steps,
    open_sets,
)
from periscope.training.distributed import Ranks
from periscope.training.heldout import (
    SAMPLES,
    describe,
    evaluate_heldout,
    for_people,
    look_size,
    sample_answers,
    texts_that_pay,
)
from periscope.training.leaving import describe_leaving
from periscope.training.memory.caching import Caching, caching, ready_made
from periscope.training.memory.plan import MemoryPlan, choose_checkpointing, combine_plans, plan, tuning_of
from periscope.training.models.language_model_holder import LanguageModelHolder
from periscope.training.models.modality_model import (
    adapter_facts,
    initialise_adapter,
    make_modality_model,
    record_templates,
)
from periscope.training.progress import StopNow, StopRequest
from periscope.training.resolve import NO_LM, Schedule, refuse_changes, refuse_missing, settle_batch, settle_schedule
from periscope.training.run import (
    OLDER,
    NullRun,
    Run,
    adapter_folder,
    best_evaluation,
    evaluation_rank,
)
from periscope.training.step import load_optimizer_state, make_optimizer, optimizer_state
from periscope.units import format_bytes

KEEP_CHECKPOINTS = 3
MAX_BAD_LOSSES = 5
FEW_TEXTS = 1000  # fewer make an adapter remember them
SOME_TEXTS = 64  # whose beginnings are compared, to say what all have in common
SOME_STEPS = 8  # whose passes are counted, to say what a pass keeps


@dataclass
class Checkpoint:
    """What a run's last checkpoint holds besides the adapter: optimizer and random-generator tensors, and facts."""

    tensors: dict[str, torch.Tensor]
    facts: dict


@dataclass
class Session:
    """Everything one training works with.

    sets: feature sets with the texts chosen from them · modality_models: modality -> the language model with its
    adapter · model: these as one · steps: item i is the batch of step i · run: its folder (a `NullRun` on all ranks but
    the first) · identity: hashes of features, texts and device, by which a resumed run recognises them · caching: what
    cached features save, where that is known · step: the last one taken · best_rank: (held-out texts left out as not
    finite, loss) of the best evaluation so far, that of `best_step` · stale: evaluations since · evaluated: whether the
    checkpoint that a run is resumed from has had its evaluation · stopped: whether a request to stop left something to
    do · loss: of the last step · bad_losses: steps whose loss wasn't finite · bad_media: media of these whose features
    aren't · micro_batch: texts per forward pass · spent: seconds per epoch, and seconds of these spent waiting for
    data · without_media: held-out losses that training
    can't change · frozen_identity: how a frozen language model is recognised, once it was asked for.
    """

    config: TrainConfig
    schedule: Schedule
    ranks: Ranks
    device: torch.device
    identity: dict[str, str]
    sets: list[TrainingSet]
    lm: LanguageModel
    modality_models: dict[str, AdaptedModel]
    model: AdaptedModel
    steps: TrainingSteps | MixedSteps
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    run: Run
    micro_batch: int
    caching: Caching | None = None
    step: int = 0
    best_rank: tuple[int, float] | None = None
    evaluated: bool = False
    stopped: bool = False
    best_step: int = 0
    stale: int = 0
    loss: float = 0.0
    bad_losses: int = 0
    bad_media: dict[str, None] = field(default_factory=dict)
    spent: tuple[float, float] = (0.0, 0.0)
    without_media: dict[str, float] = field(default_factory=dict)
    frozen_identity: LanguageModelIdentity | None = None

    def lm_identity(self) -> LanguageModelIdentity:
        """How the language model is recognised: read from it once, if it is frozen."""
        if self.lm.trained:
            return self.lm.identity()
        self.frozen_identity = self.frozen_identity or self.lm.identity()
        return self.frozen_identity

    def outcome(self) -> str:
        """What became of the language model, to follow its name."""
        if self.lm.trained:
            return f" was trained too and is in {self.run.step_folder() / 'adapter' / LANGUAGE_MODEL}"
        return "'s own weights are unchanged" if self.lm.lora else " is unchanged"

    @property
    def best(self) -> float | None:
        """The lowest held-out loss so far."""
        return self.best_rank[1] if self.best_rank else None

    def best_look(self) -> str:
        """Which checkpoint is the best, as a sentence that follows another; "" where nothing is held out."""
        if self.best is None:
            return ""
        last = "the last one" if self.best_step == self.step else f"that of step {self.best_step}"
        return f" The best checkpoint is {last} (held-out loss {self.best:.3f})."

    @property
    def has_heldout(self) -> bool:
        return any(training_set.heldout for training_set in self.sets)

    def next_step(self) -> str:
        """The command to go on with, after "Next: ": scoring, where something was held out for it."""
        path = self.run.path
        if any(text.media for one in self.sets for text in one.heldout):
            return f"Next: {command('eval', '--run', path)}"
        ranked = command("eval", "--run", path, "--loss-drop", "train")
        return f"Nothing is held out to score it on; its losses on what it learnt from can be ranked.\nNext: {ranked}"

    @property
    def out_of_patience(self) -> bool:
        """Whether the held-out loss has stopped falling, as --patience says."""
        return 0 < (self.config.logging.patience or 0) <= self.stale

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation on the held-out texts belongs to this step; not to one whose loss was bad."""
        at_end = self.step == self.schedule.steps
        planned = self.step > 0 and self.step % self.schedule.eval_every == 0 and math.isfinite(self.loss)
        return self.has_heldout and (at_end or planned)

    def evaluate_unless_stopped(self, stop: StopRequest, say: Callable[[str], None]) -> None:
        """Evaluate the checkpoint of this step and print the result; a request to stop ends that (`stopped`)."""
        alone = self.ranks.size == 1  # several processes wait for one another in the evaluation
        try:
            lines = self.evaluate(stop.interrupting() if alone else nullcontext())
        except StopNow:
            self.stopped = True
            return
        for line in lines:
            say(line)
        if self.out_of_patience and self.step < self.schedule.steps:
            say(
                f"step {self.step}: no lower held-out loss in {self.stale} evaluations (--patience), so training ends "
                f"here; the best checkpoint is that of step {self.best_step}"
            )

    def evaluate(self, interrupting: AbstractContextManager) -> list[str]:
        """Evaluate the checkpoint of this step on the held-out texts, and log the result; lines to print.

        Leaves torch's generator as it was, as a run that is resumed from this checkpoint finds it. interrupting:
        surrounds the part that takes long, from which an exception may come; nothing is written then.
        """
        trained_texts = self.steps.counts(self.step)
        generator = torch.get_rng_state()
        with interrupting:
            losses, ratio, results = evaluate_heldout(
                self.model, self.sets, trained_texts, self.micro_batch, self.ranks, self.without_media
            )
            answers = [
                sample_answers(self.model, each.dataset, each.heldout, self.micro_batch, self.ranks, each.answers)
                for each in self.sets
            ]
        torch.set_rng_state(generator)
        not_finite = sum(result["not_finite"] for result in results.values())
        rank = (not_finite, losses["real"])
        self.stale += 1
        if math.isfinite(losses["real"]) and (self.best_rank is None or rank < self.best_rank):
            self.best_rank, self.best_step, self.stale = rank, self.step, 0
            self.run.point_best(self.step)  # before the log: a run killed in between does the evaluation again
        if self.ranks.first:
            self._write_adapters(self.run.path / "steps" / f"{self.step:06d}" / "adapter", describe_adapter)
        rows = [row | {"id": (number, row["id"])} for number, rows in enumerate(answers) for row in rows]
        several = len(self.sets) > 1
        memory = peak_memory(self.device)
        extra: dict[str, object] = {"memory": memory} if memory is not None else {}
        if several:
            extra["sets"] = results
        if not_finite:
            extra["not_finite"] = not_finite
        shown = [
            for_people(row, each.dataset)
            for each, set_rows in zip(self.sets, answers, strict=True)
            for row in set_rows[:SAMPLES]
        ]
        self.run.write_samples(self.step, shown)
        self.run.log(step=self.step, heldout=losses, rms_ratio=ratio, scores=training_scores(rows), **extra)
        return [describe(self.step, result, name if several else "") for name, result in results.items()]

    def check_loss(self, loss: float, norm: float, batch: Batch, say: Callable[[str], None]) -> None:
        """Raise RunError after several losses that aren't finite, for weights that aren't, and for fp16 gradients that
        always overflow.

        norm: of the gradient · batch: this process's share of the step, where a medium's features may not be finite.
        """
        self.loss = loss
        if not math.isfinite(loss):
            self.bad_losses += 1
            self.bad_media |= {self._origin(key): None for key in not_finite_media(batch)}
            cause = ""
            if self.bad_media:
                first, *others = self.bad_media
                more = f" and of {len(others)} other media" if others else ""
                cause = f"the features of {first}{more} aren't finite"
            say(
                f"step {self.step}: the loss is {loss}, so no step was taken ({self.bad_losses} of at most "
                f"{MAX_BAD_LOSSES}){'; ' * bool(cause)}{cause}"
            )
            if self.bad_losses == MAX_BAD_LOSSES:
                advice = f"try --precision bf16 or fp32, or a lower --lr{self._going_on()}"
                if cause:
                    advice = f"{cause}: leave these media out, or encode them again"
                raise RunError(f"the loss was {loss} {MAX_BAD_LOSSES} times; {advice}")
        elif not math.isfinite(norm):
            self._refuse_bad_weights()
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise RunError("fp16 gradients overflow at every scale; try --precision bf16 or fp32, or a lower --lr")

    def _refuse_bad_weights(self) -> None:
        """Raise RunError when a weight isn't finite, so that no such checkpoint is written."""
        for name, parameter in self.model.trained().items():
            if not parameter.isfinite().all():
                raise RunError(
                    f"the weights of {name} aren't finite after step {self.step}, which is not saved; start again with "
                    f"a lower --lr{self._going_on()}"
                )

    def _going_on(self) -> str:
        """What also helps once there is a checkpoint."""
        resume = command("train", "--resume", self.run.path, "--lr", "LOWER")
        return f", or go on from the last checkpoint with: {resume}" if self.run.has_checkpoint() else ""

    def _origin(self, key: str) -> str:
        """The name that precompute gave to the medium of a batch's slot."""
        for training_set in self.sets:
            stored = key.removeprefix(training_set.dataset.slot_name(""))
            if training_set.dataset.slot_name(stored) == key and stored in training_set.features.keys:
                return str(training_set.features.info(stored).get("origin", stored))
        return key

    def _write_adapters(self, folder: Path, write: Callable[..., None]) -> None:
        """Call `write` (`save_adapter` or `describe_adapter`) for each adapter, with its folder and its facts.

        folder: that of a single adapter; the modality is added to its name where there are several.
        """
        config = self.config
        training: dict[str, object] = {"held-out loss": self.best, "steps": self.schedule.steps}
        training |= {"batch": config.batch, "lr": config.lr, "seed": config.seed}
        if self.lm.lora:
            training |= {"lora": config.lora.lora, "lora_lr": config.lora.lora_lr}
        if self.lm.trained:
            training |= {"lm_lr": config.tune.lm_lr}
        identity = self.lm_identity()
        for modality, model in self.modality_models.items():
            own_sets = [training_set for training_set in self.sets if training_set.modality == modality]
            own_folder = folder.with_name(f"{folder.name}-{modality}") if len(self.modality_models) > 1 else folder
            facts = adapter_facts(model, identity, own_sets, self.step, training)
            write(own_folder, model.adapter, facts, lm=self.lm)

    def save(self) -> None:
        """Write a checkpoint of the current step. Raises RunError when its weights aren't finite."""
        self._refuse_bad_weights()
        facts = {
            **self.identity,
            "best": self.best,
            "evaluation_due": self.evaluation_due,
            "micro_batch": self.micro_batch,
            "threads": torch.get_num_threads(),
            "scaler": self.scaler.state_dict(),
        }
        tensors = optimizer_state(self.optimizer) | {"generator": torch.get_rng_state()}

        def write_adapters(folder: Path) -> None:
            self._write_adapters(folder, save_adapter)

        keep = 1 if self.lm.trained else KEEP_CHECKPOINTS  # each holds the language model
        self.run.save(self.step, write_adapters, {"tensors": tensors, "facts": facts}, keep)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a run's last checkpoint."""
        facts = checkpoint.facts
        self.step = facts["step"]
        evaluations = self.run.evaluations(self.step)
        self.evaluated = any(row["step"] == self.step for row in evaluations) or not facts.get("evaluation_due", True)
        best, self.stale = best_evaluation(evaluations)
        if best:
            self.best_rank, self.best_step = evaluation_rank(best), best["step"]
            if (self.run.path / "steps" / f"{self.best_step:06d}").is_dir():
                self.run.point_best(self.best_step)  # an earlier version may have been killed before it did
        try:
            load_optimizer_state(self.optimizer, checkpoint.tensors)
            self.scaler.load_state_dict(facts["scaler"])
            torch.set_rng_state(checkpoint.tensors["generator"].cpu())
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            folder = self.run.step_folder() / "state"
            raise RunError(f"{folder} isn't the state of this training ({error!r}); {OLDER}") from error
        self.run.cut_back(self.step)


def prepare(
    config: TrainConfig,
    holder: LanguageModelHolder,
    ranks: Ranks,
    path: Path,
    old: Run | None = None,
    partial: bool = False,
) -> Session:
    """Load the features, their texts, the language model and the adapter; plan memory; open the run folder.

    path: folder of a new run · old: the run to resume · partial: accept texts whose media are missing.
    """
    if config.lm is None:
        raise RunError(NO_LM)
    device = torch.device(holder.device)
    if old:
        refuse_missing(config, old)
    sources = open_sets(config, partial)
    identity = identity_of(sources, config.data.text) | {"device": device.type}
    ranks.check_same("settings or files", [config.to_flat(), identity])
    checkpoint = load_checkpoint(old) if old else None
    if checkpoint:
        refuse_changes(checkpoint.facts, **identity)
    lm = load_lm(config, holder, identity, old, checkpoint)
    torch.manual_seed(config.seed)
    models, model = make_models(config, sources, lm, holder.device, old)
    if old and ranks.first:
        old.record_places(config)  # they are what they were at the checkpoint
    sets = [choose_texts(source, models[source.modality], config.data.limit) for source in sources]
    if not old and not config.init:
        warn_of_few_texts(sets)
        propose_shift(config, sets)
    settle_batch(config, sum(len(each.index.texts) for each in sets))
    if ranks.first:
        print("\n".join([*describe_samples(sets), *describe_leaving(sets, models)]))
    steps = make_steps(sets, config, ranks.rank, ranks.size)
    every_text = sum(texts_that_pay(len(each.heldout), passes_of(each, model)) for each in sets)
    schedule = settle_schedule(config, steps.per_epoch, every_text / config.texts_per_step)
    sets = settle_looks(sets, model, schedule.eval_every, config.texts_per_step)
    memory = plan_memory(config, sets, models, lm)
    saving = plan_caching(config, sets, ranks)
    micro = checkpoint.facts["micro_batch"] if checkpoint else config.optim.micro_batch
    micro = micro or int(ranks.all_min(plan_passes(config, memory, steps, model)))
    optimizer = make_optimizer(model.trained(), config)
    scaler = torch.amp.GradScaler(device.type, enabled=lm.dtype == torch.float16)
    if not checkpoint:
        initialise_adapters(config, sets, steps, models)
        record_templates(config, models)
    run = open_run(config, path, old, ranks)
    session = Session(config, schedule, ranks, device, identity, sets, lm, models, model, steps, optimizer, scaler,
                      run, micro, saving)  # fmt: skip
    if checkpoint:
        session.restore(checkpoint)
    resumed = f", going on after step {session.step} of {schedule.steps}" if old else ""
    print(f"run: {run.path}{resumed}")
    ranks.start_alike(model.trained().values())
    return session


def load_lm(
    config: TrainConfig,
    holder: LanguageModelHolder,
    identity: dict[str, str],
    old: Run | None,
    checkpoint: Checkpoint | None,
) -> LanguageModel:
    """The language model, of a resumed run that trains it as its last checkpoint has it; the hash of what the run
    started from goes into `identity`. Raises RunError where that is another one than at the checkpoint.
    """
    trained, then = config.tune.train_lm, checkpoint.facts.get("language model") if checkpoint else None
    place = str(old.step_folder() / "adapter" / LANGUAGE_MODEL) if old and trained else ""
    lm = holder.load(str(config.lm), config.model.precision, trained, place)
    identity["language model"] = then if then and trained else holder.sha256
    if old and config.lm != old.config.lm and then:
        refuse_changes({"language model": then}, **{"language model": identity["language model"]})
    return lm


def load_checkpoint(run: Run) -> Checkpoint:
    """Read a run's last checkpoint, and set torch's number of threads as it was then: sums depend on it."""
    state = run.load_state("cpu")
    if missing := {"threads", "micro_batch", "scaler"} - state["facts"].keys():
        raise RunError(f"{run.step_folder()}/state/facts.json lacks {min(missing)}; {OLDER}")
    threads = state["facts"]["threads"]
    if torch.get_num_threads() != threads:
        print(f"threads: {threads}, as at the checkpoint, because sums depend on it")
        torch.set_num_threads(threads)
    return Checkpoint(state["tensors"], state["facts"])


def make_models(
    config: TrainConfig, sources: Sequence[OpenedSet], lm: LanguageModel, device: str, old: Run | None
) -> tuple[dict[str, AdaptedModel], AdaptedModel]:
    """An adapted model for each modality, and all of them as one.

    The adapters come from the last checkpoint of `old`, from what `--init` names, or are new. In stage 2 there is LoRA
    on the language model as well, or its own weights are trained.
    """
    first = first_by_modality(sources)
    models = {modality: make_modality_model(source, lm, device, old) for modality, source in first.items()}
    start = old.path if old else config.init
    if start and (folder := adapter_folder(Path(start), sources[0].adapter_modality) / LORA_FOLDER).is_dir():
        load_lora(lm, folder, trained=True)
    elif config.lora.lora:
        add_lora(lm, *parse_lora(config.lora.lora))
    if lm.lora:
        parameters = sum(parameter.numel() for parameter in lora_parameters(lm.model).values())
        rates = f"learning rate {config.lora.lora_lr:g}, the projector's {config.lr:g}"
        print(f"LoRA: {config.lora.lora}, {parameters:,} parameters, {rates}")
    if config.tune.train_lm:
        train_whole(lm, config)
    return models, ComposedModel(models) if len(models) > 1 else models[sources[0].modality]


def train_whole(lm: LanguageModel, config: TrainConfig) -> None:
    """Let the whole language model be trained, and print how."""
    unfreeze(lm, compute := trained_precision(config.model.precision, lm.device)[1])
    parameters = sum(parameter.numel() for parameter in lm.own_parameters().values())
    computed = ", computed in bf16" if compute else ""
    optimizer = config.optim.optimizer if rules_of(lm.device).small_moments else "adamw"
    print(
        f"trained as a whole: {parameters:,} parameters in {lm.precision}{computed}, {optimizer}, "
        f"learning rate {config.tune.lm_lr:g}, the projector's {config.lr:g}"
    )


def initialise_adapters(
    config: TrainConfig,
    sets: Sequence[TrainingSet],
    steps: TrainingSteps | MixedSteps,
    models: Mapping[str, AdaptedModel],
) -> None:
    """Initialise each modality's new adapter from features of the first step of its first set; record the length of a
    warm start in the configuration.
    """
    done: set[str] = set()
    for training_set, set_steps in zip(sets, steps.by_set, strict=True):
        if training_set.modality not in done:
            done.add(training_set.modality)
            initialise_adapter(models[training_set.modality], training_set, set_steps.first_rows())
    if len(models) == 1:
        config.projector.warm_start = sets[0].source.config.projector.warm_start


def warn_of_few_texts(sets: Sequence[TrainingSet]) -> None:
    """Print a warning when a new adapter is to be trained on fewer than `FEW_TEXTS` texts."""
    count = sum(len(training_set.index.texts) for training_set in sets)
    if count < FEW_TEXTS:
        kind = "texts" if any(any(training_set.index.is_question) for training_set in sets) else "captions"
        print(
            f"warning: {count} {kind} are too few to learn to see; thousands are usual; start from a shared adapter "
            "with --init"
        )


def propose_shift(config: TrainConfig, sets: Sequence[TrainingSet]) -> None:
    """Print what has helped where captions come back, unless it was asked for."""
    if not config.data.feature_shift and any(captions_come_back(training_set.index) for training_set in sets):
        print(
            "note: most captions are those of other media too; --feature-shift 1 has helped in such data (docs/real.md)"
        )


def passes_of(training_set: TrainingSet, model: AdaptedModel) -> int:
    """The conditions whose held-out loss is computed in each evaluation."""
    return 1 + bool(training_set.stand_ins) + training_set.learns_from_words(model)


def settle_looks(sets: Sequence[TrainingSet], model: AdaptedModel, every: int, batch: int) -> list[TrainingSet]:
    """The sets with as many held-out texts as one evaluation in `every` steps of `batch` texts can afford; printed
    where these are fewer than there are.
    """
    settled, every_text = [], sum(len(each.index.texts) for each in sets)
    for each in sets:
        share = len(each.index.texts) / every_text
        size = look_size(len(each.heldout), passes_of(each, model), round(every * batch * share))
        if size.texts < len(each.heldout):
            print(
                f"held out: {size.texts} of {len(each.heldout)} texts are looked at each time, so that it takes about "
                f"5% of the training; {spelled('eval.py')} scores all"
            )
        settled.append(replace(each, heldout=list(evenly(each.heldout, size.texts)), answers=size.answers))
    return settled


def plan_passes(config: TrainConfig, memory: MemoryPlan, steps: TrainingSteps | MixedSteps, model: AdaptedModel) -> int:
    """How many texts pass at once, counted on some steps of the training, in the form in which they will pass; what
    these have is printed.
    """
    texts = steps.some_texts(SOME_STEPS)
    cut: dict[int, list[PassShape]] = {}

    def passes(size: int) -> list[PassShape]:
        parts = (step[i : i + size] for step in texts for i in range(0, len(step), size))
        if size not in cut:
            cut[size] = [model.shape_of(part) for part in parts]
        return cut[size]

    micro = memory.texts_at_once(config.texts_per_step, passes)
    largest = max(passes(micro), key=memory.kept)
    print(f"passes: {micro} texts at once, {largest}; {format_bytes(memory.kept(largest))} kept")
    return micro


def plan_memory(
    config: TrainConfig, sets: Sequence[TrainingSet], models: Mapping[str, AdaptedModel], lm: LanguageModel
) -> MemoryPlan:
    """The memory plan, printed.

    Turns gradient checkpointing on as the configuration says, or where not even one text would fit without it.
    """
    longest = max(max(training_set.index.lengths) for training_set in sets)
    masked = config.data.texts_per_medium != 1 and any(training_set.index.has_shared_media for training_set in sets)

    prefix = min(plan_prefix(training_set, models[training_set.modality]) for training_set in sets)

    def plan_with(checkpoint_every: int) -> MemoryPlan:
        adapters = [model.adapter for model in models.values()]
        tuning = tuning_of(config, lm.device.type)
        return combine_plans(
            [plan(lm, adapter, longest, checkpoint_every, masked, prefix, tuning) for adapter in adapters]
        )

    memory, checkpoint_every = choose_checkpointing(plan_with, config.model.gradient_checkpointing, longest)
    checkpoint_layers(lm, checkpoint_every)
    print(memory)
    return memory


def plan_prefix(training_set: TrainingSet, model: AdaptedModel) -> int:
    """The number of words that the set's texts begin with and that are computed once; printed, or why they aren't."""
    texts = [training_set.dataset.segments(text) for text in evenly(training_set.index.texts, SOME_TEXTS)]
    if shared := len(leading_ids(texts)):
        often = "in every step" if model.lm.changes else "in all"
        said = f"not reused, because {model.no_prefix}" if model.no_prefix else f"computed once {often}"
        print(f"prefix: the first {shared} tokens are the same in every text, and {said}")
    return model.prefix_length(texts)


def plan_caching(config: TrainConfig, sets: Sequence[TrainingSet], ranks: Ranks) -> Caching | None:
    """What cached features save over encoding in every step, printed; None for several sets, for vectors that came
    ready-made, and where it isn't known. Texts that are chosen (--text, --limit) are charged for their own media alone.
    """
    training_set = sets[0]
    features, index = training_set.features, training_set.index
    if len(sets) > 1 or ready_made(features):
        return None
    media = None
    if config.data.text or config.data.limit:
        media = len({key for texts in (index.texts, training_set.heldout) for text in texts for key in text.media})
    saving = caching(features, training_set.source.shape.kind, index, config, ranks.size, media)
    print(saving or "caching: nothing is known about how long encoding this set took")
    return saving


def open_run(config: TrainConfig, path: Path, old: Run | None, ranks: Ranks) -> Run:
    """The run folder: that of `old`, or a new one at `path`; read-only on all ranks but the first."""
    if not ranks.first:
        return NullRun(old.path if old else path)
    return old or Run.create(path, config)
