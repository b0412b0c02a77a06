"""The demo: drawn scenes, sounds and clips, and small backbones pretrained on such media."""
