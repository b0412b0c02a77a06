"""Real pretrained weights and real pictures that package registries carry: assets, a judge, and a study of adapters."""
