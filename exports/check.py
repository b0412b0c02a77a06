"""Which ways out are open for a trained adapter, from its adapter.json alone."""

from periscope.adapters.io.schema import AdapterConfig
from periscope.exports.ways import AdapterFacts, EncoderFacts, Way, encoder_facts, has_words, ways_out


def facts_of(config: AdapterConfig) -> tuple[EncoderFacts, AdapterFacts]:
    """The facts of an adapter's `adapter.json`."""
    template = config.template
    return (
        encoder_facts(config.encoder, config.modality, pooled="pool" in (config.storage or {})),
        AdapterFacts(
            spec=config.adapter,
            output_norm=config.output_norm,
            soft_prompt=config.soft_prompt,
            lora=config.lora is not None,
            injects=config.injection is not None,
            projector_hidden=config.projector_hidden or config.hidden_size,
            hidden_size=config.hidden_size,
            model_type=config.language_model.identity.model_type or "",
            rows=bool(template.row_separator),
            after=template.media == "after",
            words=has_words(template.style, template.delimiters),
        ),
    )


def exits(config: AdapterConfig) -> list[Way]:
    """The ways out for an adapter described as in `adapter.json`: transformers, llama.cpp and vLLM, open or closed."""
    return ways_out(*facts_of(config))


def exit_named(config: AdapterConfig, name: str) -> Way:
    """The way out of that name."""
    return next(way for way in exits(config) if way.name == name)
