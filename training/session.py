"""One training in progress: what train.py prepares, steps through and finishes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from periscope.adapters.composed import ComposedModel
from periscope.adapters.io.checkpoint import save_adapter
from periscope.adapters.lm.gradient_checkpointing import checkpoint_layers
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.lora import FOLDER as LORA_FOLDER
from periscope.adapters.lm.lora import add_lora, load_lora, lora_parameters, parse_lora
from periscope.adapters.model import AdaptedModel
from periscope.console import command
from periscope.errors import RunError
from periscope.evaluation.controls import stand_ins
from periscope.evaluation.training_scores import training_scores
from periscope.training.config import TrainConfig
from periscope.training.data.dataset import TrainingSteps, medium_contents
from periscope.training.data.mix import MixedSteps
from periscope.training.data.sources import TrainingSet, by_modality, identity_of, look, make_steps, open_sets, shown
from periscope.training.distributed import Ranks
from periscope.training.heldout import SAMPLES, for_people, peak_memory, sample_answers
from periscope.training.language_model_holder import LanguageModelHolder
from periscope.training.memory.caching import Caching, caching
from periscope.training.memory.plan import MemoryPlan, plan, spare_memory, together
from periscope.training.modality_model import about_part, begin, make_part, note_templates
from periscope.training.resolve import refuse_changes, settle_length
from periscope.training.run import NullRun, Run, adapter_folder, load_optimizer_state, optimizer_state
from periscope.training.step import make_optimizer

KEEP_CHECKPOINTS = 3
MAX_BAD_LOSSES = 5


@dataclass
class Checkpoint:
    """What a run's last checkpoint holds besides the adapter: optimizer and generator tensors, and facts."""

    tensors: dict[str, torch.Tensor]
    facts: dict


@dataclass
class Session:
    """Everything one training works with.

    sets: feature sets with their texts · parts: modality -> the adapter for it on the language model · model: these as
    one · steps: item i is the batch of step i · run: its folder (on other ranks than the first, a `NullRun`) · step:
    the last one taken · best: the lowest held-out loss so far · micro_batch: texts per forward pass · identity: hashes
    of features, texts and device, by which a resumed run recognises them · spent: seconds an epoch takes, and how many
    of these are spent waiting for data.
    """

    config: TrainConfig
    ranks: Ranks
    device: torch.device
    identity: dict[str, str]
    sets: list[TrainingSet]
    lm: LanguageModel
    parts: dict[str, AdaptedModel]
    model: AdaptedModel
    steps: TrainingSteps | MixedSteps
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    run: Run
    micro_batch: int
    step: int = 0
    best: float | None = None
    saving: Caching | None = None
    bad_losses: int = 0
    spent: tuple[float, float] = (0.0, 0.0)

    @property
    def has_heldout(self) -> bool:
        return any(training_set.heldout for training_set in self.sets)

    def next_step(self) -> str:
        """The command to go on with, as a sentence: scoring, where something was held out for it."""
        path = self.run.path
        if any(text.media for one in self.sets for text in one.heldout):
            return f"Next: {command('eval', '--run', path)}"
        ranked = command("eval", "--run", path, "--loss-drop", "train")
        return f"Nothing is held out to score it on. Next, its losses on what it learnt from: {ranked}"

    def evaluate(self) -> tuple[bool, list[str]]:
        """Evaluate on held-out texts and log it; whether the loss is the lowest so far, and lines to print."""
        losses, ratio, each = look(self.model, self.sets, self.steps.counts(self.step), self.micro_batch, self.ranks)
        answers = [sample_answers(self.model, one.encoded, one.heldout) for one in self.sets]
        rows = [row | {"id": (number, row["id"])} for number, some in enumerate(answers) for row in some]
        more = peak_memory(str(self.device)) | ({"sets": each} if len(self.sets) > 1 else {})
        self.run.log(step=self.step, heldout=losses, rms_ratio=ratio, scores=training_scores(rows), **more)
        shown_rows = [
            for_people(row, one.encoded) for one, some in zip(self.sets, answers, strict=True) for row in some[:SAMPLES]
        ]
        self.run.write_samples(self.step, shown_rows)
        is_best = self.best is None or losses["real"] < self.best
        self.best = losses["real"] if is_best else self.best
        return is_best, [shown(self.step, row, name if len(self.sets) > 1 else "") for name, row in each.items()]

    def check_loss(self, loss: float, say: Callable[[str], None]) -> None:
        """Raise RunError after several losses that aren't finite, and for fp16 gradients that always overflow."""
        if not math.isfinite(loss):
            self.bad_losses += 1
            say(
                f"step {self.step}: the loss is {loss}, so no step was taken ({self.bad_losses} of at most "
                f"{MAX_BAD_LOSSES})"
            )
            if self.bad_losses == MAX_BAD_LOSSES:
                raise RunError(
                    f"the loss was {loss} {MAX_BAD_LOSSES} times; try --precision bf16 or fp32, or a lower --lr"
                )
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise RunError("fp16 gradients overflow at every scale; try --precision bf16 or fp32, or a lower --lr")

    def save(self, is_best: bool) -> None:
        """Write a checkpoint of the current step."""
        config = self.config
        facts = {"held-out loss": self.best, "steps": config.steps, "batch": config.batch, "lr": config.lr}
        facts |= {"seed": config.seed}
        if self.lm.lora:
            facts |= {"lora": config.lora.lora, "lora_lr": config.lora.lora_lr}

        def write(path: Path) -> None:
            for modality, part in self.parts.items():
                own = [one for one in self.sets if one.modality == modality]
                folder = path.with_name(f"{path.name}-{modality}") if len(self.parts) > 1 else path
                save_adapter(folder, part.adapter, about_part(part, own, self.step, facts), lm=self.lm)

        state = {
            "tensors": optimizer_state(self.optimizer) | {"generator": torch.get_rng_state()},
            "facts": self.identity
            | {
                "best": self.best,
                "micro_batch": self.micro_batch,
                "threads": torch.get_num_threads(),
                "scaler": self.scaler.state_dict(),
            },
        }
        self.run.save(self.step, write, state, KEEP_CHECKPOINTS, is_best)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a run's last checkpoint."""
        facts = checkpoint.facts
        self.step, self.best = facts["step"], facts["best"]
        load_optimizer_state(self.optimizer, checkpoint.tensors)
        self.scaler.load_state_dict(facts["scaler"])
        torch.set_rng_state(checkpoint.tensors["generator"].cpu())
        self.run.cut_back(self.step)

    def begin(self) -> None:
        """Initialise new adapters from the features of the first step."""
        first = by_modality(self.sets)
        for training_set, steps in zip(self.sets, self.steps.parts, strict=True):
            if training_set is first[training_set.modality]:
                begin(self.parts[training_set.modality], training_set, steps.first_rows())
        note_templates(self.config, self.parts)


def prepare(
    config: TrainConfig,
    holder: LanguageModelHolder,
    ranks: Ranks,
    path: Path,
    old: Run | None = None,
    partial: bool = False,
) -> Session:
    """Load the features, their texts, the language model and the adapter; plan memory; open the run folder."""
    device = torch.device(holder.device)
    sets = open_sets(config, partial)
    identity = identity_of(sets, config.data.text) | {"device": device.type}
    ranks.check_same("settings or files", [config.to_flat(), identity])
    checkpoint = load_checkpoint(old, holder.device) if old else None
    if checkpoint:
        refuse_changes(checkpoint.facts, **identity)
    lm = holder.load(config.lm, config.model.precision)
    torch.manual_seed(config.seed)
    parts, model = make_models(config, sets, lm, holder.device, old)
    choose_texts(config, sets, parts)
    steps = make_steps(sets, config, ranks.rank, ranks.size)
    settle_length(config, steps.per_epoch)
    needs, longest = plan_memory(config, sets, parts, lm)
    saving = plan_caching(config, sets, ranks)
    micro = checkpoint.facts["micro_batch"] if checkpoint else config.optim.micro_batch
    micro = micro or int(ranks.all_min(needs.micro_batch(config.batch, longest)))
    optimizer = make_optimizer(model.trained(), config)
    scaler = torch.amp.GradScaler(device.type, enabled=lm.dtype == torch.float16)
    session = Session(config, ranks, device, identity, sets, lm, parts, model, steps, optimizer, scaler,
                      run=old, micro_batch=micro, saving=saving)  # fmt: skip
    if not checkpoint:
        session.begin()
    session.run = open_run(config, path, old, ranks)
    if checkpoint:
        session.restore(checkpoint)
    again = f", going on after step {session.step} of {config.steps}" if old else ""
    print(f"run: {session.run.path}{again}")
    ranks.start_alike(model.trained().values())
    return session


def load_checkpoint(run: Run, device: str) -> Checkpoint:
    """A run's last checkpoint, and torch's number of threads set to what it was, because sums depend on it."""
    state = run.load_state(device)
    threads = state["facts"]["threads"]
    if torch.get_num_threads() != threads:
        print(f"threads: {threads}, as at the checkpoint, because sums depend on it")
        torch.set_num_threads(threads)
    return Checkpoint(state["tensors"], state["facts"])


def make_models(
    config: TrainConfig, sets: list[TrainingSet], lm: LanguageModel, device: str, old: Run | None
) -> tuple[dict[str, AdaptedModel], AdaptedModel]:
    """The adapter for each modality, from the checkpoint of `old`, from what `--init` names, or new; and all as one
    model. In stage 2 also LoRA on the language model.
    """
    parts = {modality: make_part(one, lm, device, old) for modality, one in by_modality(sets).items()}
    start = old.path if old else config.init
    if start and (lora := adapter_folder(Path(start), sets[0].owner) / LORA_FOLDER).is_dir():
        load_lora(lm, lora, trained=True)
    elif config.lora.lora:
        add_lora(lm, *parse_lora(config.lora.lora))
    if lm.lora:
        parameters = sum(parameter.numel() for parameter in lora_parameters(lm.model).values())
        rates = f"learning rate {config.lora.lora_lr:g}, the projector's {config.lr:g}"
        print(f"LoRA: {config.lora.lora}, {parameters:,} parameters, {rates}")
    return parts, ComposedModel(parts) if len(parts) > 1 else parts[sets[0].modality]


def choose_texts(config: TrainConfig, sets: list[TrainingSet], parts: Mapping[str, AdaptedModel]) -> None:
    """Fill in what each set's texts are used for, and whose features stand in for whose in the shuffled control."""
    for training_set in sets:
        part = parts[training_set.modality]
        words_alone = bool(part.lm.lora or part.adapter.soft_tokens)
        training_set.choose(part, config.data.limit, words_alone=words_alone)
        training_set.stand_in = stand_ins(medium_contents(training_set.features, training_set.heldout))


def plan_memory(
    config: TrainConfig, sets: list[TrainingSet], parts: Mapping[str, AdaptedModel], lm: LanguageModel
) -> tuple[MemoryPlan, int]:
    """The memory plan, printed, with gradient checkpointing where it is asked for or nothing would fit; and the length
    of the longest text.
    """
    longest = max(max(one.kept.lengths) for one in sets)
    shared = config.data.texts_per_medium != 1 and any(one.kept.shares for one in sets)
    needs, every = spare_memory(
        lambda every: together([plan(lm, part.adapter, longest, every, shared) for part in parts.values()]),
        config.model.gradient_checkpointing,
        longest,
    )
    checkpoint_layers(lm, every)
    print(needs)
    return needs, longest


def plan_caching(config: TrainConfig, sets: list[TrainingSet], ranks: Ranks) -> Caching | None:
    """What the cache saves against encoding in every step, printed; None for several sets or where it isn't known."""
    if len(sets) > 1:
        return None
    (only,) = sets
    saving = caching(only.features, only.shape.kind, only.kept, config, ranks.size)
    print(saving or "caching: nothing is noted of what encoding this set took")
    return saving


def open_run(config: TrainConfig, path: Path, old: Run | None, ranks: Ranks) -> Run:
    """The folder that this process writes: the old run's, or a new one; on other ranks than the first, one that it
    only reads.
    """
    if not ranks.first:
        return NullRun(old.path if old else path)
    return old or Run.create(path, config)
