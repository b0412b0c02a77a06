"""One modality's adapter on the frozen language model: new, from a checkpoint, or from an earlier run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from periscope.adapters.io.checkpoint import load_adapter
from periscope.adapters.io.schema import LANGUAGE_MODEL, AdapterConfig, read_adapter_config
from periscope.adapters.lm.identity import LanguageModelIdentity, same_language_model
from periscope.adapters.lm.injection import Injection, injection_into
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template, default_template
from periscope.errors import AdapterError, RunError, UserError
from periscope.shards.manifest import differences
from periscope.shards.read import FeatureSet
from periscope.training.config import PromptOptions, TrainConfig
from periscope.training.data.training_set import OpenedSet, TrainingSet
from periscope.training.models.warm_start import can_warm_start, warm_start
from periscope.training.run import Run, adapter_folder

WARM_START = 60  # contrastive steps of a new adapter, unless an option says otherwise (docs/warm_start.md)


def make_modality_model(source: OpenedSet, lm: LanguageModel, device: str, old: Run | None = None) -> AdaptedModel:
    """The adapter that reads `source`, with its prompt template, on `lm`.

    It comes from the last checkpoint of `old`, with the template stored there; or from the adapter that `--init` names;
    or it is new, initialised from torch's generator.
    """
    config = source.config
    start = old.path if old else config.init
    if start:
        adapter, facts = load_adapter(adapter_folder(Path(start), source.adapter_modality), device)
        refuse_other_start(facts, start, source.features, lm)
    else:
        adapter = new_adapter(source, lm)
        adapter.to(device)
        if adapter.soft_prompt is not None:
            ids = torch.randint(len(lm.tokenizer), (adapter.soft_tokens,))
            adapter.soft_prompt.start_from(lm.embed(ids.to(device)))
    template = facts.template if old else make_template(config.prompt, source.shape, adapter, lm, source.modality)
    parameters = sum(parameter.numel() for parameter in adapter.parameters())
    label = f"adapter of {source.adapter_modality}" if source.adapter_modality else "adapter"
    print(f"{label}: {adapter.spec}, {parameters:,} parameters, {source.shape.kind} to {adapter.tokens} tokens")
    prompt = Prompt(lm.tokenizer, template, source.modality)
    return AdaptedModel(lm, adapter, prompt, config.projector.token_noise, config.optim.loss_mean)


def new_adapter(source: OpenedSet, lm: LanguageModel) -> Adapter:
    """A new adapter on the CPU, initialised from torch's generator."""
    options, shape = source.config.injection, source.shape
    injection = None
    if shape.kind == "layers":
        injection = injection_into(lm, shape.tokens, options.inject_layers, options.epalm_compat)
    return build_adapter(source.config, shape, lm.hidden_size, lm.embedding_rms, injection)


def build_adapter(
    config: TrainConfig, shape: FeatureShape, hidden_size: int, embedding_rms: float, injection: Injection | None = None
) -> Adapter:
    """The adapter that a configuration describes, for features of `shape`, on torch's default device."""
    options = config.projector
    return Adapter(
        config.adapter,
        shape,
        hidden_size,
        embedding_rms,
        soft_prompt=options.soft_prompt,
        soft_prompt_mlp=options.soft_prompt_mlp,
        output_norm=options.output_norm,
        projector_hidden=options.projector_hidden,
        projector_layers=options.projector_layers,
        projector_frames=options.projector_frames,
        soft_prompt_unit=options.soft_prompt_unit,
        injection=injection,
    )


def make_template(
    options: PromptOptions, shape: FeatureShape, adapter: Adapter, lm: LanguageModel, modality: str = "image"
) -> Template:
    """The template that the options describe; the rest is chosen by the tokenizer.

    Raises AdapterError for a row separator with an adapter that doesn't give one token per patch of a grid.
    """
    optional: dict[str, Any] = {"caption_prompt": options.caption_prompt, "question": options.question}
    if options.row_separator:
        if not shape.grid or adapter.tokens != shape.grid[0] * shape.grid[1]:
            raise AdapterError(
                f"--row-separator needs a token for each patch of a grid, and {adapter.spec} makes {adapter.tokens} of "
                f"{shape.tokens} {shape.kind}"
            )
        optional["rows"] = shape.grid[0]
    return default_template(
        lm.tokenizer,
        options.template,
        options.delimiters,
        modality,
        media=options.media_place,
        soft_prompt=options.soft_prompt_place,
        row_separator=options.row_separator,
        box_decimals=options.box_decimals,
        eos=options.eos,
        loss_on=options.loss_on,
        requests=options.caption_requests,
        captions=options.captions,
        caption_form=options.caption_form,
        marks=options.media_marks,
        preamble=options.preamble,
        between=options.between_turns,
        own_space=options.own_space,
        end=options.answer_end,
        **{name: value for name, value in optional.items() if value is not None},
    )


def initialise_adapter(model: AdaptedModel, training_set: TrainingSet, features: torch.Tensor) -> None:
    """Initialise a new adapter from features of the first step, and print how.

    Rescales the projector to the RMS of the word embeddings, starts its tokens from words (`--start-words`) and takes
    the contrastive steps of `--warm-start`, as configured. `features`: `(media, width)` or `(media, tokens, width)`.
    """
    config, adapter, lm = training_set.source.config, model.adapter, model.lm
    features = features.to(lm.device)
    factor = 1.0 if config.init else adapter.match_scale(features)
    if factor != 1:
        print(f"the projector's last layer is scaled by {factor:.3g}, to the embeddings' RMS")
    if words := config.projector.start_words:
        ids = lm.tokenizer.encode(words, add_special_tokens=False)
        adapter.start_from(lm.embed(torch.tensor(ids, dtype=torch.long, device=lm.device)), features)
    if config.projector.warm_start is None and not config.init and can_warm_start(model, training_set.index):
        config.projector.warm_start = 0 if config.projector.start_words else WARM_START
    if steps := config.projector.warm_start:
        losses = warm_start(model, training_set.dataset, training_set.index, steps, config.lr, config.seed)
        print(f"warm start: {len(losses)} steps, contrast with the words from {losses[0]:.2f} to {losses[-1]:.2f} nats")


def record_templates(config: TrainConfig, models: Mapping[str, AdaptedModel]) -> None:
    """Write each modality's template style and delimiters into the configuration."""
    for modality, model in models.items():
        template = model.prompt.template
        if len(models) == 1:
            before, after = template.delimiters
            config.prompt.template = "chat" if template.style == "chat" else "plain"
            config.prompt.delimiters = before, after
        else:
            chosen = {"template": template.style, "delimiters": list(template.delimiters)}
            config.by_modality[modality] = {**config.by_modality.get(modality, {}), **chosen}


def refuse_other_start(about: AdapterConfig, path: Path | str, features: FeatureSet, lm: LanguageModel) -> None:
    """Raise RunError when the adapter at `path`, whose adapter.json is `about`, was trained with another encoder than
    that of `features`, or with another language model.
    """
    ours, theirs = about.encoder, features.manifest["encoder"]
    if ours.get("fingerprint") != theirs["fingerprint"] and _same_but_for_preprocessing(ours, theirs):
        print(f"note: {path} was trained on media prepared in another way than those of {features.path}")
    elif ours.get("fingerprint") != theirs["fingerprint"]:
        raise RunError(
            f"{path} was trained on features of {ours.get('name')}, and {features.path} was made with {theirs['name']} "
            f"(what differs: {differences(ours, theirs)}); encode the media with that one"
        )
    if difference := same_language_model(about.language_model.identity, lm.identity()):
        raise RunError(f"{lm.name} is not the language model that {path} was trained with: {difference}")


def _same_but_for_preprocessing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two encoders differ in nothing but how media are prepared for them, as LLaVA-1.5's in its two stages.
    Descriptions by earlier versions don't tell.
    """
    parts = ("class", "layer", "width", "weights")
    return bool(ours.get("weights")) and all(ours.get(part) == theirs.get(part) for part in parts)


def adapter_facts(
    model: AdaptedModel, identity: LanguageModelIdentity, sets: Sequence[TrainingSet], step: int, training: dict
) -> dict:
    """What adapter.json records of an adapter's encoder, language model and training (see `save_adapter`).

    identity: the language model's · sets: the training sets it reads · training: further facts of the training.
    """
    features, kind = sets[0].features, sets[0].source.shape.kind
    return {
        "modality": sets[0].modality,
        "encoder": features.manifest["encoder"],
        "storage": features.manifest["features"][kind],
        "language_model": {
            "name": model.lm.name,
            "identity": identity,
            "folder": LANGUAGE_MODEL if model.lm.trained else "",
        },
        "template": model.prompt.template,
        "training": {
            "features": ", ".join(training_set.features.path.name for training_set in sets),
            "texts": sum(len(training_set.index.texts) for training_set in sets),
            "step": step,
            **kinds_of_texts(sets),
            **training,
        },
    }


def kinds_of_texts(sets: Sequence[TrainingSet]) -> dict[str, int]:
    """How many captions and how many questions the adapter was trained on, with those of the adapter that it started
    from (`--init`); empty where that one doesn't tell.
    """
    source = sets[0].source
    questions = sum(sum(training_set.index.is_question) for training_set in sets)
    texts = sum(len(training_set.index.texts) for training_set in sets)
    counts = {"captions": texts - questions, "questions": questions}
    if source.config.init:
        try:
            before = read_adapter_config(adapter_folder(Path(source.config.init), source.adapter_modality)).training
        except UserError:  # it may be gone by now
            return {}
        if not all(isinstance(before.get(name), int) for name in counts):
            return {}
        counts = {name: count + before[name] for name, count in counts.items()}
    return counts
