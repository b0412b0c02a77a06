"""Media in, features out: sources, decoding, frozen encoders, shards."""
