"""Ways out: the programs that an adapter can be exported to, which choice closes each, and what `--for` sets.

The one table of these conditions. `periscope plan` and the plan of a training print it, `--for` sets and refuses by it,
and the exports refuse by it. It works on facts alone: nothing is loaded, and torch isn't imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Target = Literal["transformers", "llama.cpp", "vllm"]  # as --for takes it
TRANSFORMERS, LLAMA_CPP, VLLM = "transformers", "llama.cpp", "vLLM"
WAYS: Mapping[Target, str] = {"transformers": TRANSFORMERS, "llama.cpp": LLAMA_CPP, "vllm": VLLM}

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


INJECTING = ("epalm", "epalm-shared")  # adapters whose vectors go into inner layers


@dataclass(frozen=True)
class Needs:
    """What `--for` sets where neither a flag nor a recipe does: options of precompute.py and of train.py."""

    precompute: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


NEEDS: Mapping[Target, Needs] = {
    "transformers": Needs({"kinds": ("patches",)}, {"adapter": "mlp", "output_norm": False}),
    # Without delimiters the language model's own chat template is enough, which its GGUF file holds.
    "llama.cpp": Needs(
        {"encoder": "siglip2-b", "kinds": ("patches",), "resize": "llama.cpp"},
        {"adapter": "mlp", "output_norm": False, "delimiters": ("", "")},
    ),
    "vllm": Needs(),
}


@dataclass(frozen=True)
class EncoderFacts:
    """What precompute decides.

    tower: "clip" (a class token), "siglip" (none) or "other" · resize: "stretch", "crop", "letterbox", "llama.cpp" or
    another word for how a picture becomes square · kinds: of features that there are; () where it doesn't matter ·
    pooled: whether patches were averaged after encoding · cls_token: whether the CLS token stands among the patches.
    """

    modality: str
    name: str
    tower: str
    resize: str
    kinds: tuple[str, ...] = ()
    pooled: bool = False
    cls_token: bool = False


@dataclass(frozen=True)
class AdapterFacts:
    """What train.py decides.

    model_type: the language model's, "" where it isn't known yet · rows: whether there are row separators · after:
    whether the picture stands behind the question · words: whether the prompt has words that aren't in the language
    model's own chat template.
    """

    spec: str
    output_norm: bool
    soft_prompt: int
    lora: bool
    injects: bool
    projector_hidden: int
    hidden_size: int
    model_type: str
    rows: bool
    after: bool
    words: bool


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


def ways_out(encoder: EncoderFacts, adapter: AdapterFacts) -> list[Way]:
    """The ways out for an adapter on an encoder's features: transformers, llama.cpp and vLLM, open or closed."""
    notes = {TRANSFORMERS: _transformers_notes, LLAMA_CPP: _llama_cpp_notes, VLLM: _vllm_notes}
    return [
        Way(name, (*closed_by_encoder(name, encoder), *closed_by_adapter(name, adapter)), tuple(say(encoder, adapter)))
        for name, say in notes.items()
    ]


def closed_by_encoder(way: str, facts: EncoderFacts) -> list[str]:
    """Why features can't leave that way, whatever is trained on them."""
    if way == VLLM:
        alone = facts.kinds == ("layers",)
        return ["layers alone, which only injection into inner layers reads"] if alone else []
    reasons = []
    if facts.modality != "image":
        reasons.append(f"{facts.modality}: only images are exported")
    elif facts.tower == "other":
        reasons.append(f"encoder {facts.name}: only CLIP and SigLIP towers are exported")
    elif facts.tower == "clip" and way == LLAMA_CPP:
        reasons.append("class token: llama.cpp puts it last since #13321 and computes CLIP wrongly; take SigLIP")
    if facts.kinds and "patches" not in facts.kinds:
        reasons.append("features without patches, which mlp and linear read")
    if facts.pooled:
        reasons.append("pooled patches (--pool)")
    if facts.cls_token:
        reasons.append("the CLS token among the patches (--cls-token)")
    if way == TRANSFORMERS and facts.resize not in ("stretch", "crop", "letterbox"):
        reasons.append(f"resize {facts.resize}: no image processor of transformers does it")
    return reasons


def closed_by_adapter(way: str, facts: AdapterFacts) -> list[str]:
    """Why an adapter can't leave that way, whatever features it reads."""
    if facts.injects:
        return ["injection into inner layers"]
    if way == VLLM:
        return []
    llava = way == TRANSFORMERS
    wider = f"{facts.projector_hidden}: LLaVA's projector has the language model's {facts.hidden_size}"
    unfit = (NOT_IN_LLAVA if llava else NOT_IN_LLAMA_CPP).get(facts.model_type)
    closing = (
        (facts.spec not in ("mlp", "linear"), f"adapter {facts.spec}: only mlp and linear are exported"),
        (facts.output_norm, "output norm: train with --output-norm False"),
        (facts.soft_prompt, f"a soft prompt of {facts.soft_prompt}"),
        (facts.rows, "row separators"),
        (llava and facts.spec == "mlp" and facts.projector_hidden > facts.hidden_size, f"hidden width {wider}"),
        (unfit, f"{facts.model_type}: {unfit}"),
    )
    return [reason for closes, reason in closing if closes]


def _transformers_notes(_: EncoderFacts, facts: AdapterFacts) -> list[str]:
    notes = ["LoRA is merged into the language model"] if facts.lora else []
    if facts.model_type not in TRIED:
        notes.append(f"{facts.model_type or 'this language model'} isn't among the language models tested")
    return notes + _order(facts)


def _llama_cpp_notes(encoder: EncoderFacts, facts: AdapterFacts) -> list[str]:
    notes = []
    if facts.lora:
        notes.append("merge the LoRA into the language model first (periscope export merged)")
    if encoder.resize != "llama.cpp":
        framed = f"it pads pictures to a square, and training framed them by {encoder.resize}"
        notes.append(f"{framed}: encode with --resize llama.cpp")
    if facts.words:
        notes.append("give the server the chat template that lies beside the mmproj")
    return notes + _order(facts)


def _vllm_notes(_: EncoderFacts, facts: AdapterFacts) -> list[str]:
    notes = [
        "periscope export embeds makes requests for vllm serve --enable-prompt-embeds; read from its source, not run"
    ]
    return [*notes, "serve lora/ with --enable-lora"] if facts.lora else notes


def _order(facts: AdapterFacts) -> list[str]:
    return ["put the picture after the question"] if facts.after else []


def described(ways: Sequence[Way]) -> list[str]:
    """Lines for a plan: the open ways in one, and a line for each closed one with what closes it."""
    names = ", ".join(way.name for way in ways if way.open)
    closed = [f"not to {way.name}: {'; '.join(way.reasons)}" for way in ways if not way.open]
    return [f"can be exported to: {names or 'no other program'}", *closed]


def has_words(style: str, delimiters: Sequence[str]) -> bool:
    """Whether a prompt of this template has words besides the language model's own chat template."""
    return style != "chat" or any(delimiters)


def opened_by(encoder: EncoderFacts, adapter: AdapterFacts) -> list[Target]:
    """The values of `--for` that would open a way closed now."""
    closed = {way.name for way in ways_out(encoder, adapter) if not way.open}
    found: list[Target] = []
    for target, needs in NEEDS.items():
        mended = replace(
            adapter,
            spec=needs.train.get("adapter", adapter.spec),
            output_norm=needs.train.get("output_norm", adapter.output_norm),
            injects=adapter.injects and "adapter" not in needs.train,
        )
        framed = replace(encoder, resize=needs.precompute.get("resize", encoder.resize))
        if WAYS[target] in closed and not closed_by_encoder(WAYS[target], framed):
            found += [] if closed_by_adapter(WAYS[target], mended) else [target]
    return found


def closed_by_options(target: Target, options: Mapping[str, Any], lm: Mapping[str, Any]) -> list[str]:
    """Why what a command line of train.py says can't be exported, before anything is loaded.

    options: as given, with those of its recipe; what isn't among them is taken for what `--for` sets · lm: the language
    model's config.json, empty where it isn't here.
    """
    given = {**NEEDS[target].train, **options}
    hidden = int(lm.get("word_embed_proj_dim") or lm.get("hidden_size") or 0)
    wanted = int(given.get("projector_hidden") or 0)
    spec = str(given.get("adapter") or "mlp")
    return closed_by_adapter(
        WAYS[target],
        AdapterFacts(
            spec=spec,
            output_norm=bool(given.get("output_norm", False)) and spec not in INJECTING,
            soft_prompt=int(given.get("soft_prompt") or 0),
            lora=False,
            injects=spec in INJECTING,
            projector_hidden=wanted if hidden else 0,
            hidden_size=hidden,
            model_type=str(lm.get("model_type") or ""),
            rows=bool(given.get("row_separator")),
            after=False,
            words=False,
        ),
    )


def named_encoder(
    name: str, modality: str, tower: str, resize: str, kinds: Sequence[str], pooled: bool
) -> EncoderFacts:
    """The facts of an encoder that isn't loaded yet. modality, tower: as its short name tells them, or "" · resize: the
    option of precompute.py, "encoder" for its own.

    What can't be told closes nothing here.
    """
    family, found = name.partition(":")[0], "siglip" in name.lower()
    by_family = {"open_clip": "siglip" if found else "clip", "timm": "siglip" if found else "other"}
    known = tower or by_family.get(family, "other" if family in ("imu2clip", "fused", "vectors") else "siglip")
    return EncoderFacts(
        modality or "image", name, known, "stretch" if resize == "encoder" else resize, tuple(kinds), pooled
    )


def refusal(target: Target, reasons: Sequence[str]) -> str:
    """The sentence that refuses a `--for`; "" where nothing closes that way."""
    return f"--for {target} can't work: {'; '.join(reasons)} (docs/exports.md)" if reasons else ""


def encoder_facts(
    encoder: Mapping[str, Any], modality: str, kinds: Sequence[str] = (), pooled: bool = False
) -> EncoderFacts:
    """The facts of an encoder described as in a manifest or adapter.json."""
    return EncoderFacts(
        modality,
        str(encoder.get("name") or encoder.get("id") or "none"),
        _tower(encoder),
        _resize(encoder.get("preprocessing") or {}),
        tuple(kinds),
        pooled,
        bool((encoder.get("choices") or {}).get("cls_token")),
    )


def _tower(encoder: Mapping[str, Any]) -> str:
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


def _resize(preprocessing: Mapping[str, Any]) -> str:
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
