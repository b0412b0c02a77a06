"""Short names of encoders: data, no code. Sizes are what is downloaded or read once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    """encoder: what the short name stands for · size: of the weights · about: one line for people."""

    encoder: str
    size: str
    about: str


NAMES = {
    "demo": Name("open_clip:demo/backbones/clip", "a few MB", "the demo's own, trained on drawn scenes only"),
    "clip-b-32": Name("open_clip:ViT-B-32-quickgelu/openai", "0.6 GB", "OpenAI CLIP ViT-B/32, 224 px"),
    "clip-b-16": Name("open_clip:ViT-B-16-quickgelu/openai", "0.6 GB", "OpenAI CLIP ViT-B/16, 224 px"),
    "clip-l": Name("open_clip:ViT-L-14-quickgelu/openai", "1.7 GB", "OpenAI CLIP ViT-L/14, 224 px"),
    "clip-l-336": Name("open_clip:ViT-L-14-336-quickgelu/openai", "1.7 GB", "OpenAI CLIP ViT-L/14, 336 px: LLaVA's"),
    "siglip-b": Name("transformers:google/siglip-base-patch16-224", "0.8 GB", "SigLIP ViT-B/16, 224 px"),
    "siglip-so400m-384": Name("transformers:google/siglip-so400m-patch14-384", "3.5 GB", "SigLIP so400m, 384 px"),
    "siglip2-b": Name("transformers:google/siglip2-base-patch16-224", "1.5 GB", "SigLIP 2 ViT-B/16, 224 px"),
    "siglip2-so400m-384": Name("transformers:google/siglip2-so400m-patch14-384", "4.5 GB", "SigLIP 2 so400m, 384 px"),
    "dinov2-s": Name("transformers:facebook/dinov2-small", "0.1 GB", "DINOv2 ViT-S/14, no words in its training"),
    "dinov2-b": Name("transformers:facebook/dinov2-base", "0.4 GB", "DINOv2 ViT-B/14"),
    "dinov2-l": Name("transformers:facebook/dinov2-large", "1.2 GB", "DINOv2 ViT-L/14"),
    "dinov2-b-reg": Name("transformers:facebook/dinov2-with-registers-base", "0.4 GB", "DINOv2 ViT-B/14, registers"),
    "vit-b": Name(
        "transformers:google/vit-base-patch16-224-in21k", "0.4 GB", "ViT-B/16 trained on ImageNet-21k labels"
    ),
}
