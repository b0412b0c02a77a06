"""Which ways out are open for what a training would make (exports/ways.py), and the refusal of `--for`."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from periscope.adapters.lm.files.find import find_model
from periscope.adapters.lm.load import load_config
from periscope.adapters.model import AdaptedModel
from periscope.adapters.projectors import find_projector
from periscope.console import command
from periscope.errors import RunError
from periscope.exports.ways import (
    WAYS,
    AdapterFacts,
    EncoderFacts,
    Target,
    described,
    encoder_facts,
    has_words,
    opened_by,
    refusal,
    ways_out,
)
from periscope.shards.read import FeatureSet
from periscope.training.config import TrainConfig, named_sets
from periscope.training.data.training_set import TrainingSet


def refuse_closed(config: TrainConfig, target: Target | None) -> None:
    """Raise RunError where the adapter that a configuration describes can't be exported as `--for` says, unloaded.

    Raises AdapterError for a language model whose config can't be read.
    """
    if target is None:
        return
    name = str(config.lm)
    lm = load_config(find_model(name), name)
    for path in named_sets(config.features):
        features = FeatureSet(path)
        own = config.of_modality(features.manifest["modality"])
        ways = ways_out(facts_of_set(features), facts_of_config(own, lm))
        if sentence := refusal(target, next(way.reasons for way in ways if way.name == WAYS[target])):
            raise RunError(sentence)


def describe_leaving(sets: Sequence[TrainingSet], models: Mapping[str, AdaptedModel]) -> list[str]:
    """Lines for a training's plan: what each modality's adapter can be exported to, and what rules out the rest."""
    lines = []
    for modality, model in models.items():
        features = next(training_set.features for training_set in sets if training_set.modality == modality)
        before = f"{modality}: " if len(models) > 1 else ""
        lines += [before + line for line in lines_of(facts_of_set(features), facts_of_model(model))]
    return lines


def lines_of(encoder: EncoderFacts, adapter: AdapterFacts) -> list[str]:
    """The lines of a plan, with the `--for` that would allow another export."""
    lines = described(ways_out(encoder, adapter))
    if targets := opened_by(encoder, adapter):
        options = " or ".join(f"--for {target}" for target in targets)
        both = command("precompute"), command("train")
        lines.append(f"to change that, give {options} to both {both[0]} and {both[1]}")
    return lines


def facts_of_set(features: FeatureSet) -> EncoderFacts:
    """The facts of a feature set's manifest."""
    manifest = features.manifest
    held = manifest["features"]
    pooled = "pool" in held.get("patches", {})
    return encoder_facts(manifest["encoder"], manifest["modality"], tuple(held), pooled)


def facts_of_config(config: TrainConfig, lm: PretrainedConfig) -> AdapterFacts:
    """The facts of an adapter before it is made, for a language model's config."""
    text: Any = lm.get_text_config()
    projector, prompt = config.projector, config.prompt
    injects = find_projector(config.adapter)[0].injects
    hidden = getattr(text, "word_embed_proj_dim", None) or text.hidden_size
    return AdapterFacts(
        spec=config.adapter,
        output_norm=projector.output_norm and not injects,
        soft_prompt=projector.soft_prompt,
        lora=bool(config.lora.lora),
        injects=injects,
        projector_hidden=projector.projector_hidden or hidden,
        hidden_size=hidden,
        model_type=lm.model_type,
        rows=bool(prompt.row_separator),
        after=prompt.media_place == "after",
        words=prompt.delimiters is None or has_words(prompt.template or "chat", prompt.delimiters),
    )


def facts_of_model(model: AdaptedModel) -> AdapterFacts:
    """The facts of an adapter on its language model."""
    adapter, template, lm = model.adapter, model.prompt.template, model.lm
    return AdapterFacts(
        spec=adapter.spec,
        output_norm=adapter.output_norm,
        soft_prompt=adapter.soft_tokens,
        lora=lm.lora is not None,
        injects=adapter.injects,
        projector_hidden=adapter.projector_hidden or adapter.hidden_size,
        hidden_size=adapter.hidden_size,
        model_type=lm.model.config.model_type or "",
        rows=bool(template.row_separator),
        after=template.media == "after",
        words=has_words(template.style, template.delimiters),
    )
