"""The feature set on disk: the contract between the half that encodes media and the half that trains on them."""
