"""A folder that plain transformers loads: `LlavaForConditionalGeneration` and `AutoProcessor`."""

import copy
from math import floor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
)
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

from periscope.adapters.io.checkpoint import write_folder
from periscope.adapters.io.merge_lora import merge_into
from periscope.adapters.io.schema import AdapterConfig
from periscope.adapters.lm.files.find import find_model
from periscope.adapters.lm.identity import same_language_model
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.load import load_config, load_language_model
from periscope.adapters.lm.lora import FOLDER as LORA
from periscope.adapters.lm.lora import load_lora
from periscope.adapters.lm.precision import DTYPES, stored_precision
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.prompting.prompt import Prompt
from periscope.errors import AdapterError
from periscope.exports.prompt_form import IMAGE_TOKEN, chat_template, id_differences
from periscope.exports.source import open_adapter
from periscope.exports.towers import VisionTower, has_class_token, vision_tower
from periscope.exports.ways import TRANSFORMERS
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.registry import load_encoder_like
from periscope.quiet import quiet_transformers

SAMPLES = ((97, 64), (48, 80), (64, 64))  # widths and heights of the pictures an image processor is checked with
TOLERANCE = 1e-2  # of logits, relative to the largest; fp32 gives some 1e-5, another graph 1


def export_llava(
    adapter: Path, out: Path, encoder: str | None = None, lm: str | None = None, precision: str | None = None
) -> list[str]:
    """Write the model of the adapter in folder `adapter`, its encoder and its language model to `out`, a folder that
    must not exist.

    encoder, lm: where these are now, if they have moved · precision: of the weights written, "fp32", "fp16" or "bf16";
    by default the language model's own. A LoRA is merged. Returns what the user should know, as sentences. Raises
    AdapterError where this way out is closed, and when the model doesn't compute what the adapter does.
    """
    trained, config, way = open_adapter(adapter, out, TRANSFORMERS)
    language = _language_model(adapter, config, lm)
    own = getattr(load_config(find_model(language.name), language.name).get_text_config(), "dtype", None)
    dtype = DTYPES[precision] if precision else own or torch.float32
    prompt = Prompt(language.tokenizer, config.template, config.modality)
    seeing = load_encoder_like(config.encoder, moved=encoder)
    template = chat_template(prompt, IMAGE_TOKEN)
    differences = id_differences(prompt, template, IMAGE_TOKEN)
    features = seeing.encode(seeing.preprocess(_picture(SAMPLES[0]))[None], ["patches"])["patches"][0]
    wanted = _logits_here(AdaptedModel(language, trained, prompt), features)
    tower = vision_tower(seeing)
    processor = _processor(prompt, seeing, template, has_class_token(tower))
    notes = [*way.notes, *differences, *_framing_notes(processor, seeing)]
    model = llava_model(trained, tower, language, prompt, processor.image_token_id, seeing.patch_layer)
    _compare(model, prompt, seeing, wanted)

    def write(folder: Path) -> None:
        with quiet_transformers():
            model.to(dtype=dtype).save_pretrained(folder)  # type: ignore[call-arg]
        processor.save_pretrained(folder)

    write_folder(out, write)
    return notes


@torch.no_grad()
def llava_model(
    adapter: Adapter, tower: VisionTower, lm: LanguageModel, prompt: Prompt, image_token: int, layer: int
) -> LlavaForConditionalGeneration:
    """A LLaVA of a `mlp` or `linear` adapter in fp32 around the language model's own modules, which it shares.

    image_token: the id that stands for a picture's vectors; the embeddings grow by zeros where they lack it · layer:
    which of the tower's hidden states the adapter reads. Raises AdapterError for a language model that LLaVA's class
    can't hold.
    """
    head: Any = lm.model.get_output_embeddings()
    words: Any = lm.model.get_input_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise AdapterError(f"{lm.name} has a head with a bias, or none, and LLaVA's has no bias")
    if lm.hidden_size != lm.layer_size:
        raise AdapterError(f"{lm.name} has word embeddings narrower than its layers, which LLaVA doesn't allow")
    rows = len(words.weight)
    if image_token >= rows:
        lm.model.resize_token_embeddings(image_token + 1, mean_resizing=False)
        head, words = lm.model.get_output_embeddings(), lm.model.get_input_embeddings()
        head.weight[rows:] = 0
        words.weight[rows:] = 0
    spec = adapter.spec
    base: Any = lm.model.base_model
    text = copy.deepcopy(lm.model.config.get_text_config())
    if text.tie_word_embeddings and not hasattr(base, "embed_tokens"):  # LLaVA ties to a module of that name only
        text.tie_word_embeddings = False
        head = copy.deepcopy(head)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=adapter.tokens,
        projector_hidden_act="gelu" if spec == "mlp" else "linear",
        vision_feature_select_strategy="default" if has_class_token(tower) else "full",
        vision_feature_layer=layer,
        multimodal_projector_bias=True,
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = base
    model.lm_head = head
    model.model.multi_modal_projector.load_state_dict(_projector(adapter), assign=True)
    stop = list(prompt.stop_ids)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=stop, pad_token_id=stop[0], suppress_tokens=[image_token], max_new_tokens=64
    )
    return model.eval().requires_grad_(False)


def _projector(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The projector's two maps in LLaVA's form: `linear` followed by an identity, a narrower `mlp` filled with zeros,
    which GELU leaves zeros.
    """
    last, hidden = adapter.projector.last, adapter.hidden_size
    assert isinstance(last, torch.nn.Linear)
    if adapter.spec == "linear":
        maps = [last.weight, last.bias, torch.eye(hidden), torch.zeros(hidden)]
    else:
        first = adapter.projector.first
        assert isinstance(first, torch.nn.Linear)
        lacking = hidden - first.out_features
        pad = torch.nn.functional.pad
        maps = [
            pad(first.weight, (0, 0, 0, lacking)),
            pad(first.bias, (0, lacking)),
            pad(last.weight, (0, lacking)),
            last.bias,
        ]
    names = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")
    return {name: value.detach().float().clone() for name, value in zip(names, maps, strict=True)}


def image_processor(encoder: Encoder) -> CLIPImageProcessorPil | LlavaImageProcessorPil:
    """The image processor of transformers that does what an encoder's preprocessing says. Raises AdapterError for what
    none does.
    """
    facts = dict(encoder.preprocessing)
    library = facts.pop("library")
    if library == "transformers":
        facts.pop("backend", None)
        name = str(facts.pop("image_processor_type"))
        kind = get_image_processor_class_from_name(name if name.endswith("Pil") else name + "Pil")
        if kind is not None:
            return kind(**facts)
        raise AdapterError(f"encoder {encoder.name}: transformers has no {name} that uses Pillow")
    size = facts["input_size"][1:] if library == "timm" else facts["size"]
    height, width = (size, size) if isinstance(size, int) else size
    scale = facts.get("crop_pct", 1.0) if library == "timm" else 1.0
    inner = [floor(length / scale) for length in (height, width)]
    mode = str(facts.get("resize") or facts.get("resize_mode") or facts.get("crop_mode"))
    common: dict[str, Any] = {
        "resample": int(Image.Resampling[str(facts["interpolation"]).upper()]),
        "image_mean": list(facts["mean"]),
        "image_std": list(facts["std"]),
        "crop_size": {"height": height, "width": width},
    }
    if mode in ("crop", "shortest", "center") and height == width:
        return CLIPImageProcessorPil(size={"shortest_edge": inner[0]}, do_center_crop=True, **common)
    if mode in ("stretch", "squash"):
        return CLIPImageProcessorPil(size={"height": inner[0], "width": inner[1]}, do_center_crop=True, **common)
    if mode == "letterbox" and height == width:
        side = {"height": height, "width": width}
        return LlavaImageProcessorPil(size=side, do_pad=True, do_center_crop=False, **common)
    raise AdapterError(f"encoder {encoder.name}: no image processor of transformers does the resize {mode!r}")


def _processor(prompt: Prompt, encoder: Encoder, template: str, cls: bool) -> LlavaProcessor:
    tokenizer = prompt.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    return LlavaProcessor(
        image_processor(encoder),
        tokenizer,
        patch_size=encoder.patch_size,
        vision_feature_select_strategy="default" if cls else "full",
        num_additional_image_tokens=int(cls),
        image_token=IMAGE_TOKEN,
        chat_template=template,
    )


def _language_model(adapter: Path, config: AdapterConfig, moved: str | None) -> LanguageModel:
    """The adapter's language model in fp32, with the LoRA merged."""
    name = moved or config.language_model_in(adapter)
    if bits := stored_precision(load_config(find_model(name), name)):
        raise AdapterError(
            f"{name} is stored in {bits}; name the model it was made from, in full precision: --lm MODEL"
        )
    language = load_language_model(name, "cpu", "fp32")
    if difference := same_language_model(config.language_model.identity, language.identity()):
        raise AdapterError(f"{name} is not the language model that {adapter} was trained with: {difference}")
    if config.lora:
        load_lora(language, adapter / LORA)
        merge_into(language)
    return language


@torch.no_grad()
def _logits_here(model: AdaptedModel, features: torch.Tensor) -> torch.Tensor:
    """Periscope's own logits of a caption's first word: (vocabulary,)."""
    segments = model.prompt.segments([], ["picture"], answer=False)
    batch, injected = model._splice([segments], model.slots([segments], {"picture": features}), train=False)
    with injected:
        return model.lm.model(**model._inputs(batch), logits_to_keep=1, use_cache=False).logits[0, -1].float()


@torch.no_grad()
def _compare(model: LlavaForConditionalGeneration, prompt: Prompt, encoder: Encoder, wanted: torch.Tensor) -> None:
    """Raise AdapterError unless LLaVA's graph gives the logits of Periscope's on the same ids and pixels."""
    ids: list[int] = []
    for segment in prompt.segments([], ["picture"], answer=False):
        ids += [model.config.image_token_id] * model.config.image_seq_length if segment.slot else segment.ids
    found = model(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        pixel_values=encoder.preprocess(_picture(SAMPLES[0]))[None].float().cpu(),
        logits_to_keep=1,
    ).logits[0, -1, : len(wanted)]
    apart = ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)).item()
    if not apart < TOLERANCE:
        kind = getattr(model.config.text_config, "model_type", "this language model")
        raise AdapterError(
            f"{kind} in LLaVA's class gives other logits (by {apart:.2g} of the largest), so nothing was written; this "
            "language model can't be exported"
        )


def _framing_notes(processor: LlavaProcessor, encoder: Encoder) -> list[str]:
    """How far the image processor's pixels are from the encoder's own, where that is more than rounding."""
    apart = 0.0
    for size in SAMPLES:
        image = _picture(size)
        mine = encoder.preprocess(image)
        its = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        apart = max(apart, (mine - its).abs().max().item() if mine.shape == its.shape else float("inf"))
    if apart == float("inf"):
        raise AdapterError(f"encoder {encoder.name}: the image processor gives pictures of another size")
    return [f"normalised pixels differ by up to {apart:.2g} from training's"] if apart > 1e-4 else []


def _picture(size: tuple[int, int]) -> Image.Image:
    """A picture with edges and gradients: (width, height), RGB."""
    horizontal = Image.linear_gradient("L").resize(size)
    vertical = Image.linear_gradient("L").rotate(90).resize(size)
    checks = Image.radial_gradient("L").resize((7, 5)).resize(size, Image.Resampling.NEAREST)
    return Image.merge("RGB", (horizontal, vertical, checks))
