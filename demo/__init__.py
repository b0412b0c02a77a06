"""The embedded default: drawn scenes, sounds and clips, and the small backbones pretrained on such media."""
