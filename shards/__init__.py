"""The feature set on disk: the contract between encoding and training."""
