"""One modality's adapter on the frozen language model: new, from a checkpoint, or from an earlier run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from periscope.adapters.io.checkpoint import load_adapter
from periscope.adapters.io.schema import AdapterConfig, read_adapter_config
from periscope.adapters.lm.identity import same_language_model
from periscope.adapters.lm.injection import Injection, injection_into
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template, default_template
from periscope.errors import AdapterError, RunError, UserError
from periscope.shards.read import FeatureSet
from periscope.training.config import PromptOptions, TrainConfig
from periscope.training.data.sources import TrainingSet
from periscope.training.run import Run, adapter_folder
from periscope.training.warm_start import warm_start


def make_part(source: TrainingSet, lm: LanguageModel, device: str, old: Run | None = None) -> AdaptedModel:
    """The adapter that reads `source`, with the form of its prompts, on `lm`: from the run's last checkpoint (`old`),
    with the template of that; from the adapter that the settings name as `init`; or new, from torch's generator.
    """
    config = source.config
    start = old.path if old else config.init
    if start:
        adapter, about = load_adapter(adapter_folder(Path(start), source.owner), device)
        refuse_other_start(about, start, source.features, lm)
    else:
        adapter = new_adapter(source, lm)
        adapter.to(device)
        if adapter.soft_prompt is not None:
            ids = torch.randint(len(lm.tokenizer), (adapter.soft_tokens,))
            adapter.soft_prompt.start_from(lm.embed(ids.to(device)))
    made = None if old else make_template(config.prompt, source.shape, adapter, lm)
    template = made or about.template
    trained = sum(parameter.numel() for parameter in adapter.parameters())
    of = f" of {source.owner}" if source.owner else ""
    print(f"adapter{of}: {adapter.spec}, {trained:,} parameters, {source.shape.kind} to {adapter.tokens} tokens")
    prompt = Prompt(lm.tokenizer, template, source.modality)
    return AdaptedModel(lm, adapter, prompt, config.projector.token_noise, config.optim.loss_mean)


def new_adapter(source: TrainingSet, lm: LanguageModel) -> Adapter:
    """An adapter of the form that the settings give, from torch's generator, on the CPU."""
    where, shape = source.config.injection, source.shape
    injection = None
    if shape.kind == "layers":
        injection = injection_into(lm, shape.tokens, where.inject_layers, where.epalm_compat)
    return build_adapter(source.config, shape, lm.hidden_size, lm.embedding_rms, injection)


def build_adapter(
    config: TrainConfig, shape: FeatureShape, hidden_size: int, embedding_rms: float, injection: Injection | None = None
) -> Adapter:
    """The adapter that a configuration describes, for features of `shape`, on torch's default device."""
    form = config.projector
    return Adapter(
        config.adapter,
        shape,
        hidden_size,
        embedding_rms,
        soft_prompt=form.soft_prompt,
        soft_prompt_mlp=form.soft_prompt_mlp,
        output_norm=form.output_norm,
        projector_hidden=form.projector_hidden,
        projector_layers=form.projector_layers,
        injection=injection,
    )


def make_template(options: PromptOptions, shape: FeatureShape, adapter: Adapter, lm: LanguageModel) -> Template:
    """The template that the options describe, the rest as suits the tokenizer.

    Raises AdapterError for separated rows with an adapter that doesn't give one token per patch of a grid.
    """
    rows = {}
    if options.row_separator:
        if not shape.grid or adapter.tokens != shape.grid[0] * shape.grid[1]:
            raise AdapterError(
                f"--row-separator needs a token for each patch of a grid, and {adapter.spec} makes {adapter.tokens} of "
                f"{shape.tokens} {shape.kind}"
            )
        rows["rows"] = shape.grid[0]
    texts = {"caption_prompt": options.caption_prompt, "question": options.question}
    return default_template(
        lm.tokenizer,
        options.template,
        options.delimiters,
        media=options.media_place,
        soft_prompt=options.soft_prompt_place,
        row_separator=options.row_separator,
        box_decimals=options.box_decimals,
        eos=options.eos,
        loss_on=options.loss_on,
        **rows,
        **{name: text for name, text in texts.items() if text is not None},
    )


def begin(part: AdaptedModel, source: TrainingSet, rows: torch.Tensor) -> None:
    """Bring a new adapter's tokens to the embeddings' scale, to words, or near their captions' words, as the settings
    say, by the features of a first batch, `rows`; print what was done.
    """
    config, adapter, lm = source.config, part.adapter, part.lm
    rows = rows.to(lm.device)
    factor = 1.0 if config.init else adapter.match_scale(rows)
    if factor != 1:
        print(f"the projector's last layer is scaled by {factor:.3g}, to the embeddings' RMS")
    if words := config.projector.start_words:
        ids = lm.tokenizer.encode(words, add_special_tokens=False)
        adapter.start_from(lm.embed(torch.tensor(ids, dtype=torch.long, device=lm.device)), rows)
    if steps := config.projector.warm_start:
        apart = warm_start(part, source.encoded, source.kept, steps, config.lr, config.seed)
        print(f"warm start: {len(apart)} steps, contrast with the words from {apart[0]:.2f} to {apart[-1]:.2f} nats")


def note_templates(config: TrainConfig, parts: Mapping[str, AdaptedModel]) -> None:
    """Record in the configuration which template style and delimiters each modality's prompts have."""
    for modality, part in parts.items():
        template = part.prompt.template
        if len(parts) == 1:
            config.prompt.template, config.prompt.delimiters = template.style, tuple(template.delimiters)
        else:
            chosen = {"template": template.style, "delimiters": list(template.delimiters)}
            config.by_modality[modality] = {**config.by_modality.get(modality, {}), **chosen}


def refuse_other_start(about: AdapterConfig, path: Path | str, features: FeatureSet, lm: LanguageModel) -> None:
    """Raise RunError when the adapter at `path`, whose adapter.json is `about`, was trained with another encoder than
    that of `features`, or with another language model.
    """
    ours, theirs = about.encoder, features.manifest["encoder"]
    if ours.get("fingerprint") != theirs["fingerprint"]:
        raise RunError(
            f"{path} was trained on features of {ours.get('name')}, and {features.path} was made with {theirs['name']} "
            "(weights, layer or preprocessing differ); encode the media with that one"
        )
    if difference := same_language_model(about.language_model.identity, lm.identity()):
        raise RunError(f"{lm.name} is not the language model that {path} was trained with: {difference}")


def about_part(part: AdaptedModel, sources: Sequence[TrainingSet], step: int, facts: dict) -> dict:
    """What an adapter's folder says it was made for, and of its training: see `adapters.checkpoint.save_adapter`."""
    first = sources[0]
    texts = sum(len(one.kept.texts) for one in sources)
    return {
        "modality": first.modality,
        "encoder": first.features.manifest["encoder"],
        "storage": first.features.manifest["features"][first.shape.kind],
        "language_model": {"name": part.lm.name, "identity": part.lm.identity()},
        "template": part.prompt.template,
        "training": {"features": ", ".join(one.features.path.name for one in sources), "texts": texts, "step": step}
        | kinds_of_texts(sources)
        | facts,
    }


def kinds_of_texts(sources: Sequence[TrainingSet]) -> dict[str, int]:
    """How many captions and how many questions the adapter learnt from, with those of the adapter it was begun from
    (--init); {} where that one doesn't tell.
    """
    first = sources[0]
    questions = sum(sum(one.kept.asks) for one in sources)
    counts = {"captions": sum(len(one.kept.asks) for one in sources) - questions, "questions": questions}
    if first.config.init:
        try:
            before = read_adapter_config(adapter_folder(Path(first.config.init), first.owner)).training
        except UserError:  # it may be gone by now
            return {}
        if not all(isinstance(before.get(name), int) for name in counts):
            return {}
        counts = {name: count + before[name] for name, count in counts.items()}
    return counts
