"""Experiments behind the documentation, and the pretraining of the demo's models. Not part of the installed package.

Run each from a clone: `python -m studies.NAME`. The first line of each module says what it measures and what it writes.

- `compare`, `compose`, `stage2`, `retrieval`, `ranks`: measurements in docs/, with their tables and charts.
- `pretrain`, `pretrain_dino`, `pretrain_mamba`, `pretrain_media`: the models in demo/backbones.
- `corpus`: the text that the language models are trained on. `probe`, `probe_media`: scores of the models.
- `screenshots`: the pictures in docs/ that can be made again. `first_run`: docs/first_run.md.
- `code_size`: lines and complexity.
"""
