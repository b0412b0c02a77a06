"""Verifying and summarising a feature set."""

from collections.abc import Mapping
from pathlib import Path

import torch

from periscope.errors import FeatureSetError
from periscope.shards.index import scan_shard, sha256_file
from periscope.shards.layout import describe, stored_bytes
from periscope.shards.manifest import HELDOUT, NAME, is_sealed, load_manifest
from periscope.shards.read import FeatureSet

UNCHECKED = (
    "an earlier version made it, so changes in its texts, held-out list, thumbnails and manifest can't be seen "
    "(running the same precompute.py command again adds their hashes)"
)
MEND = "Copy these again, or run the same precompute.py command again"


def verify(folder: Path) -> str:
    """Check every byte of a set: sizes, sha256, tar structure, shapes, values, counts, texts, held-out media.

    Returns one sentence. Raises FeatureSetError naming every damaged file.
    """
    folder, manifest = Path(folder), load_manifest(folder)
    beside, shards = changed_files(folder, manifest), _changed_shards(folder, manifest)
    if shards:
        raise FeatureSetError(
            f"{folder}: {'; '.join([*beside, *shards])}. Copy these again, or delete them and run the same "
            "precompute.py command"
        )
    if beside:
        raise FeatureSetError(f"{folder}: {'; '.join(beside)}. {MEND}")
    wrong: list[str] = []
    features = FeatureSet(folder)
    counts = {"media": len(features), "heldout": len(features.heldout), "texts": len(features.texts())}
    for name, found in counts.items():
        if found != manifest["counts"][name]:
            wrong.append(f"{found} {name} where the manifest says {manifest['counts'][name]}")
    wrong += _strange_values(features)
    if strangers := features.heldout.difference(features.keys):
        wrong.append(f"{HELDOUT} names media that aren't in the set ({min(strangers)})")
    if wrong:
        raise FeatureSetError(f"{folder}: " + "; ".join(wrong) + ". Run the same precompute.py command again")
    size = sum(shard["bytes"] for shard in manifest["shards"])
    about = f"{len(manifest['shards'])} shards, {size / 1e6:,.1f} MB, {counts['media']} media, {counts['texts']} texts"
    whole = f"{folder} is whole: {about}"
    return whole if "files" in manifest else f"{whole}; {UNCHECKED}"


def _changed_shards(folder: Path, manifest: Mapping) -> list[str]:
    """What is wrong with the shards, if anything."""
    wrong = []
    for shard in manifest["shards"]:
        path = folder / shard["name"]
        if not path.is_file():
            wrong.append(f"{shard['name']} is missing")
        elif path.stat().st_size != shard["bytes"] or sha256_file(path) != shard["sha256"]:
            wrong.append(f"{shard['name']} was changed or damaged (its sha256 isn't the manifest's)")
        else:
            try:
                found = len(scan_shard(path, manifest["features"]))
                if found != shard["samples"]:
                    wrong.append(f"{shard['name']} holds {found} media, the manifest says {shard['samples']}")
            except FeatureSetError as error:
                wrong.append(str(error))
    return wrong


def changed_files(folder: Path, manifest: Mapping) -> list[str]:
    """What is wrong with the manifest and the files beside the shards, if anything; nothing of a set made by an earlier
    version, which kept no hashes of them.
    """
    if "files" not in manifest and "sha256" not in manifest:
        return []
    wrong = [] if is_sealed(folder) else [f"{NAME} was changed or damaged (the sha256 in its last line isn't its own)"]
    for name, digest in manifest.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif sha256_file(path) != digest:
            wrong.append(f"{name} was changed or damaged (its sha256 isn't the manifest's)")
    return wrong


def _strange_values(features: FeatureSet) -> list[str]:
    """What is wrong with float16 values, if anything; the other codecs can't hold NaN or infinity."""
    kinds = [kind for kind, entry in features.manifest["features"].items() if entry["codec"] == "fp16"]
    bad: dict[str, list[str]] = {kind: [] for kind in kinds}
    for key in features.keys if kinds else []:
        stored = features.stored(key)
        for kind in kinds:
            if not torch.isfinite(stored[kind]).all():
                bad[kind].append(key)
    return [f"{kind} of {len(keys)} media hold NaN or infinity ({keys[0]})" for kind, keys in bad.items() if keys]


def inspect(folder: Path) -> str:
    """A summary of a set, as lines of text."""
    features = FeatureSet(folder)
    manifest, texts = features.manifest, features.texts()
    encoder, counts = manifest["encoder"], manifest["counts"]
    splits: dict[str, int] = {}
    for text in texts:
        splits[text.split] = splits.get(text.split, 0) + 1
    lines = [
        f"{features.path}: {counts['media']} {manifest['modality']} media, {counts['heldout']} of them held out, "
        f"{counts['rejected']} rejected",
        f"  encoder   {encoder['name']} ({encoder.get('library')} {encoder.get('class')}, "
        f"fingerprint {encoder['fingerprint'][:12]})",
    ]
    for kind, entry in manifest["features"].items():
        lines.append(f"  {kind:<9} {describe(entry)}, {stored_bytes(entry):,} bytes each")
    size = sum(shard["bytes"] for shard in manifest["shards"])
    lines.append(f"  shards    {len(manifest['shards'])}, {size / 1e6:,.1f} MB")
    lines.append(
        "  texts     " + (", ".join(f"{number} {split}" for split, number in sorted(splits.items())) or "none")
    )
    for text in texts[:3]:
        turns = " / ".join(f"{turn['role']}: {turn['content']}" for turn in text.turns)
        media = ", ".join(features.info(key)["origin"] for key in text.media) or "no media"
        lines.append(f"    [{media}] {turns[:160]}")
    return "\n".join(lines)
