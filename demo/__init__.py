"""The embedded default: drawn scenes and the small backbones pretrained on such scenes."""
