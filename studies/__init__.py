"""Experiments behind the documentation and the pretraining of the demo backbones. Not part of the package."""
