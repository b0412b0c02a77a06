"""Which ways out are open for an adapter, and what closes the others: from facts alone, without loading a model."""

from collections.abc import Mapping
from dataclasses import dataclass

from periscope.adapters.io.schema import AdapterConfig
from periscope.adapters.prompting.template import Template

TRANSFORMERS, LLAMA_CPP, VLLM = "transformers", "llama.cpp", "vLLM"
CLIP_TOWERS = ("CLIPVisionModel", "CLIPVisionModelWithProjection")
# Model types whose export the tests run, and those that the other program computes differently: type -> why.
TRIED = frozenset(
    (
        "falcon_mamba",
        "gemma",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "llama",
        "mamba",
        "mamba2",
        "mistral",
        "olmo2",
        "opt",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    )
)
NOT_IN_LLAVA = {
    "gemma2": "it caps its logits, which LLaVA's head leaves out",
    "granite": "it scales its logits, which LLaVA's head leaves out",
    "cohere": "it scales its logits, which LLaVA's head leaves out",
    "cohere2": "it scales its logits, which LLaVA's head leaves out",
    "phi": "its head has a bias, and LLaVA's has none",
    "gptj": "its head has a bias, and LLaVA's has none",
}
NOT_IN_LLAMA_CPP = {
    "opt": "llama.cpp doesn't know OPT",
    "gpt_neo": "llama.cpp doesn't know GPT-Neo",
    "gemma": "llama.cpp multiplies a Gemma's image vectors by the root of its width",
    "gemma2": "llama.cpp multiplies a Gemma's image vectors by the root of its width",
}


@dataclass(frozen=True)
class ExportFacts:
    """What decides which ways out are open.

    tower: "clip" (a class token), "siglip" (none) or "other" · resize: "stretch", "crop", "letterbox" or another word
    for how a picture becomes square · pooled: patches were averaged after encoding · model_type: the language model's.
    """

    modality: str
    spec: str
    kind: str
    output_norm: bool
    soft_prompt: int
    lora: bool
    injects: bool
    projector_hidden: int
    hidden_size: int
    tower: str
    encoder: str
    layer: int
    resize: str
    pooled: bool
    model_type: str
    template: Template


@dataclass(frozen=True)
class Way:
    """One way out: open where `reasons` is empty. `notes`: what to know where it is open."""

    name: str
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def open(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        words = "; ".join(self.notes if self.open else self.reasons)
        return f"{self.name}: {'yes' if self.open else 'no'}{', ' + words if words else ''}"


def facts_of(config: AdapterConfig) -> ExportFacts:
    """The facts of an adapter's `adapter.json`."""
    encoder = config.encoder
    return ExportFacts(
        modality=config.modality,
        spec=config.adapter,
        kind=config.features.kind,
        output_norm=config.output_norm,
        soft_prompt=config.soft_prompt,
        lora=config.lora is not None,
        injects=config.injection is not None,
        projector_hidden=config.projector_hidden or config.hidden_size,
        hidden_size=config.hidden_size,
        tower=_tower(encoder),
        encoder=str(encoder.get("name") or encoder.get("id") or "none"),
        layer=(encoder.get("layer") or {}).get("patches") or -2,
        resize=_resize(encoder.get("preprocessing") or {}),
        pooled="pool" in (config.storage or {}),
        model_type=config.language_model.identity.model_type or "",
        template=config.template,
    )


def exits(config: AdapterConfig) -> list[Way]:
    """The ways out for an adapter described as in `adapter.json`: transformers, llama.cpp and vLLM, open or closed."""
    facts = facts_of(config)
    return [_transformers(facts), _llama_cpp(facts), _vllm(facts)]


def exit_named(config: AdapterConfig, name: str) -> Way:
    """The way out of that name."""
    return next(way for way in exits(config) if way.name == name)


def _transformers(facts: ExportFacts) -> Way:
    reasons = _common(facts)
    if facts.spec == "mlp" and facts.projector_hidden > facts.hidden_size:
        reasons.append(
            f"hidden width {facts.projector_hidden}: LLaVA's projector has the language model's {facts.hidden_size}"
        )
    if facts.resize not in ("stretch", "crop", "letterbox"):
        reasons.append(f"resize {facts.resize}: no image processor of transformers does it")
    if facts.model_type in NOT_IN_LLAVA:
        reasons.append(f"{facts.model_type}: {NOT_IN_LLAVA[facts.model_type]}")
    notes = ["LoRA is merged into the language model"] if facts.lora else []
    return Way(TRANSFORMERS, tuple(reasons), tuple(notes + _untried(facts) + _order(facts)))


def _llama_cpp(facts: ExportFacts) -> Way:
    reasons = _common(facts)
    if facts.tower == "clip":
        reasons.append("class token: llama.cpp puts it last since #13321 and computes CLIP wrongly")
    if facts.model_type in NOT_IN_LLAMA_CPP:
        reasons.append(f"{facts.model_type}: {NOT_IN_LLAMA_CPP[facts.model_type]}")
    notes = []
    if facts.lora:
        notes.append("merge the LoRA into the language model first (periscope adapters merge-lora)")
    if facts.resize != "llama.cpp":
        notes.append(f"it pads pictures to a square, and training framed them by {facts.resize}")
    if any(facts.template.delimiters) or facts.template.style == "plain":
        notes.append("give the server the chat template that lies beside the mmproj")
    return Way(LLAMA_CPP, tuple(reasons), tuple(notes + _order(facts)))


def _vllm(facts: ExportFacts) -> Way:
    reasons = ["injection into inner layers"] if facts.injects else []
    notes = ["send the vectors as prompt embeddings (--enable-prompt-embeds); read from its source, not run"]
    if facts.lora:
        notes.append("serve lora/ with --enable-lora")
    return Way(VLLM, tuple(reasons), tuple(notes))


def _common(facts: ExportFacts) -> list[str]:
    """What closes both programs that compute the picture's vectors themselves."""
    reasons = []
    if facts.modality != "image":
        reasons.append(f"{facts.modality}: only images are exported")
    if facts.injects:
        reasons.append("injection into inner layers")
    if facts.spec not in ("mlp", "linear"):
        reasons.append(f"adapter {facts.spec}: only mlp and linear are exported")
    if facts.output_norm:
        reasons.append("output norm: train with --output-norm False")
    if facts.soft_prompt:
        reasons.append(f"a soft prompt of {facts.soft_prompt}")
    if facts.pooled:
        reasons.append("pooled patches (--pool)")
    if facts.template.row_separator:
        reasons.append("row separators")
    if facts.tower == "other" and facts.modality == "image":
        reasons.append(f"encoder {facts.encoder}: only CLIP and SigLIP towers are exported")
    return reasons


def _untried(facts: ExportFacts) -> list[str]:
    known = facts.model_type in TRIED
    return [] if known else [f"{facts.model_type or 'this language model'} isn't among the language models tested"]


def _order(facts: ExportFacts) -> list[str]:
    return ["put the picture after the question"] if facts.template.media == "after" else []


def _tower(encoder: Mapping) -> str:
    """By library and class; timm's classes don't say whether there is a class token, so its SigLIP is known by name."""
    library, kind = encoder.get("library"), encoder.get("class")
    siglip = "siglip" in f"{encoder.get('name')} {encoder.get('id')}".lower()
    if library == "transformers":
        return "clip" if kind in CLIP_TOWERS else "siglip" if kind == "SiglipVisionModel" else "other"
    if library == "open_clip" and kind == "VisionTransformer":
        return "clip"
    if (library, kind) in (("open_clip", "TimmModel"), ("timm", "VisionTransformer")) and siglip:
        return "siglip"
    return "other"


def _resize(preprocessing: Mapping) -> str:
    library = preprocessing.get("library")
    if library == "periscope":
        return str(preprocessing.get("resize"))
    if library == "open_clip":
        mode = str(preprocessing.get("resize_mode"))
        return {"shortest": "crop", "squash": "stretch"}.get(mode, mode)
    if library == "timm":
        mode = str(preprocessing.get("crop_mode"))
        return {"center": "crop", "squash": "stretch"}.get(mode, mode)
    return "crop" if preprocessing.get("do_center_crop") else "stretch"
