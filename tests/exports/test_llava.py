"""Folders for transformers: plain LLaVA on plain AutoProcessor gives the ids, logits and answers of the adapter."""

import pytest
import torch
from export_models import load_here, pictures, save_patch_adapter, turns_of
from transformers import AutoProcessor, LlavaForConditionalGeneration

from periscope.adapters.splice import splice
from periscope.errors import AdapterError
from periscope.exports.llava import export_llava
from periscope.exports.ways import TRIED

TOLERANCE = 1e-4
QUESTIONS = (None, "What is in the picture?")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("llava")


def load_there(folder, **how):
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder, **how)


def inputs_there(processor, caption: str, question: str | None, image):
    content = [{"type": "image", "image": image}, {"type": "text", "text": caption if question is None else question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@torch.no_grad()
def check_equal(folder, out, ids_too: bool = True) -> set[str]:
    """Compare every picture and question: ids, all logits, answers. Returns the answers."""
    here, encoder = load_here(folder)
    there, processor = load_there(out, backend="pil")
    said, worst = set(), 0.0
    for image in pictures():
        features = {"picture": encoder.encode(encoder.preprocess(image)[None], ["patches"])["patches"][0]}
        for question in QUESTIONS:
            segments = here.prompt.segments(turns_of(question), ["picture"], answer=False)
            inputs = inputs_there(processor, here.prompt.template.caption_prompt, question, image)
            ids = []
            for segment in segments:
                ids += [there.config.image_token_id] * here.adapter.tokens if segment.slot else segment.ids
            if ids_too:
                assert inputs.input_ids[0].tolist() == ids
            batch = splice(here.lm, [segments], here.slots([segments], features), train=False)
            ours = here.lm.model(inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask).logits
            theirs = there(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                pixel_values=inputs.pixel_values,
            ).logits[..., : ours.shape[-1]]
            apart = (ours - theirs).abs().max().item()
            assert apart < TOLERANCE
            worst = max(worst, apart)
            answer = here.generate([segments], features, max_new_tokens=12)[0]
            if ids_too:
                new = there.generate(**inputs, max_new_tokens=12)[0, inputs.input_ids.shape[1] :]
                assert processor.decode(new, skip_special_tokens=True).strip() == answer
            said.add(answer)
    print(f"{out.name}: largest difference of logits {worst:.2g}")
    return said


@pytest.mark.parametrize("spec, inner", [("mlp", 0), ("mlp", 12), ("linear", 0)])
@pytest.mark.parametrize("tower", ["open_clip", "clip", "clip_projected", "siglip", "timm_siglip"])
def test_every_tower_and_projector(home, tower, spec, inner):
    name = f"{tower}{spec}{inner}"
    folder = save_patch_adapter(home / name, home, tower, spec=spec, inner=inner)
    assert export_llava(folder, home / f"{name}-out", precision="fp32") == []
    assert len(check_equal(folder, home / f"{name}-out")) > 1


@pytest.mark.parametrize("family", [*sorted(TRIED), "smollm"])
def test_every_tried_language_model(home, family):
    folder = save_patch_adapter(home / f"on-{family}", home / "families", "clip", family)
    assert export_llava(folder, home / f"{family}-out", precision="fp32") == []
    check_equal(folder, home / f"{family}-out")


@pytest.mark.parametrize("layer", [-1, -3])
def test_the_layer_that_the_adapter_reads(home, layer):
    folder = save_patch_adapter(home / f"layer{layer}", home, "clip", layer=layer)
    export_llava(folder, home / f"layer{layer}-out", precision="fp32")
    check_equal(folder, home / f"layer{layer}-out")
    model, processor = load_there(home / f"layer{layer}-out", backend="pil")
    inputs = inputs_there(processor, "Describe.", None, pictures()[0])
    right = model(**inputs).logits
    model.model.config.vision_feature_layer = model.config.vision_feature_layer = -2
    assert (model(**inputs, vision_feature_layer=-2).logits - right).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize("style", ["chat", "plain"])
def test_delimiters_and_styles(home, style):
    template = {"style": style, "delimiters": ("Scene: ", "\n")}
    folder = save_patch_adapter(home / style, home, template=template)
    export_llava(folder, home / f"{style}-out", precision="fp32")
    check_equal(folder, home / f"{style}-out")


def test_lora_is_merged(home):
    folder = save_patch_adapter(home / "lora", home, lora=True)
    notes = export_llava(folder, home / "lora-out", precision="fp32")
    assert "LoRA is merged into the language model" in notes
    check_equal(folder, home / "lora-out")


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
def test_framings(home, resize):
    """An image processor of transformers does each of Periscope's, to rounding."""
    folder = save_patch_adapter(home / resize, home, "open_clip", choices={"resize": resize})
    notes = export_llava(folder, home / f"{resize}-out", precision="fp32")
    assert not notes
    check_equal(folder, home / f"{resize}-out")


def test_the_processor_that_transformers_chooses_is_near(home):
    folder = save_patch_adapter(home / "torchvision", home, "clip")
    export_llava(folder, home / "torchvision-out", precision="fp32")
    _, encoder = load_here(folder)
    _, processor = load_there(home / "torchvision-out")
    for image in pictures():
        its = processor.image_processor(image, return_tensors="pt").pixel_values[0]
        assert (its - encoder.preprocess(image)).abs().max() < 0.05


def test_nothing_of_transformers_is_on_the_screen(home, capfd):
    folder = save_patch_adapter(home / "quiet", home)
    capfd.readouterr()
    export_llava(folder, home / "quiet-out")
    assert capfd.readouterr() == ("", "")


def test_weights_are_stored_as_the_language_models_are(home):
    from safetensors.torch import load_file

    folder = save_patch_adapter(home / "stored", home)
    export_llava(folder, home / "half", precision="bf16")
    assert {value.dtype for value in load_file(home / "half/model.safetensors").values()} == {torch.bfloat16}


def test_a_language_model_whose_head_has_a_bias_is_refused(home):
    folder = save_patch_adapter(home / "phi-head", home, family="phi")
    with pytest.raises(AdapterError, match="phi: its head has a bias"):
        export_llava(folder, home / "phi-out")


def test_another_graph_is_refused_before_anything_is_written(home, monkeypatch):
    """A family that isn't known to differ, and does."""
    from periscope.exports import ways

    monkeypatch.delitem(ways.NOT_IN_LLAVA, "granite")
    folder = save_patch_adapter(home / "granite-head", home, family="granite")
    with pytest.raises(AdapterError, match="granite in LLaVA's class gives other logits"):
        export_llava(folder, home / "granite-out")
    assert not (home / "granite-out").exists()
