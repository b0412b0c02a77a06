"""One modality's adapter on the frozen language model: new, from a checkpoint, or from an earlier run."""

from collections.abc import Mapping, Sequence

import torch

from periscope.adapters.io.checkpoint import load_adapter
from periscope.adapters.lm.injection import injection_into
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template
from periscope.training.data.sources import TrainingSet
from periscope.training.run import Run
from periscope.training.settings import template_fields
from periscope.training.start import refuse_other_start, start_folder
from periscope.training.warm_start import warm_start


def make_part(source: TrainingSet, lm: LanguageModel, device: str, old: Run | None = None) -> AdaptedModel:
    """The adapter that reads `source`, with the form of its prompts, on `lm`: from the run's last checkpoint (`old`),
    with the template of that; from the adapter that the settings name as `init`; or new, from torch's generator.
    """
    settings = source.settings
    start = old.path if old else settings["init"]
    if start:
        adapter, config = load_adapter(start_folder(start, source.owner), device)
        refuse_other_start(config, start, source.features, lm)
    else:
        adapter = new_adapter(source, lm)
        adapter.to(device)
        if adapter.soft_prompt is not None:
            ids = torch.randint(len(lm.tokenizer), (adapter.soft_tokens,))
            adapter.soft_prompt.start_from(lm.embed(ids.to(device)))
    if old:
        template = config.template
    else:
        fields = template_fields(settings, source.shape, adapter)
        template = default_template(lm.tokenizer, settings.get("template"), settings.get("delimiters"), **fields)
    trained = sum(parameter.numel() for parameter in adapter.parameters())
    of = f" of {source.owner}" if source.owner else ""
    print(f"adapter{of}: {adapter.spec}, {trained:,} parameters, {source.shape.kind} to {adapter.tokens} tokens")
    prompt = Prompt(lm.tokenizer, template, source.modality)
    return AdaptedModel(lm, adapter, prompt, settings["token_noise"], settings["loss_mean"])


def new_adapter(source: TrainingSet, lm: LanguageModel) -> Adapter:
    """An adapter of the form that the settings give, from torch's generator, on the CPU."""
    settings, shape = source.settings, source.shape
    names = ("soft_prompt", "soft_prompt_mlp", "output_norm", "projector_hidden", "projector_layers")
    form = {name: settings[name] for name in names}
    if shape.kind == "layers":
        form["injection"] = injection_into(lm, shape.tokens, settings["inject_layers"], settings["epalm_compat"])
    return Adapter(settings["adapter"], shape, lm.hidden_size, lm.embedding_rms, **form)


def begin(part: AdaptedModel, source: TrainingSet, rows: torch.Tensor) -> None:
    """Bring a new adapter's tokens to the embeddings' scale, to words, or near their captions' words, as the settings
    say, by the features of a first batch, `rows`; print what was done.
    """
    settings, adapter, lm = source.settings, part.adapter, part.lm
    rows = rows.to(lm.device)
    factor = 1.0 if settings["init"] else adapter.match_scale(rows)
    if factor != 1:
        print(f"the projector's last layer is scaled by {factor:.3g}, to the embeddings' RMS")
    if words := settings["start_words"]:
        ids = lm.tokenizer.encode(words, add_special_tokens=False)
        adapter.start_from(lm.embed(torch.tensor(ids, dtype=torch.long, device=lm.device)), rows)
    if steps := settings["warm_start"]:
        apart = warm_start(part, source.encoded, source.kept, steps, settings["lr"], settings["seed"])
        print(f"warm start: {len(apart)} steps, contrast with the words from {apart[0]:.2f} to {apart[-1]:.2f} nats")


def note_templates(settings: dict, parts: Mapping[str, AdaptedModel]) -> None:
    """Put into the settings which style and delimiters each modality's prompts have."""
    for modality, part in parts.items():
        template = part.prompt.template
        found = {"template": template.style, "delimiters": list(template.delimiters)}
        if len(parts) == 1:
            settings |= found
        else:
            settings[modality] = settings.get(modality, {}) | found


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
        | facts,
    }
