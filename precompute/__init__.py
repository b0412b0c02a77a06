"""Encoding media: source -> decode -> frozen encoder -> codec -> shard.

sources/ finds media and texts on disk, media/ decodes bytes, encoders/ turns them into features, pipeline/ runs these
stages and writes the feature set through periscope.shards.
"""
