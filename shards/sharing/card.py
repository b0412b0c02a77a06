"""The dataset card of a feature set: what the Hub's viewer shows, contents, use, licence and origin."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import DatasetCardData

from periscope.shards.layout import describe
from periscope.shards.manifest import TEXTS

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
         (10_000_000, "1M<n<10M"))  # fmt: skip
LARGEST = "n>10M"
TASKS = {"image": "image-to-text", "audio": "audio-to-text", "video": "video-to-text"}
NOUNS = {"image": "images", "audio": "sounds", "video": "clips"}


def card(
    manifest: Mapping[str, Any], repo: str, license: str = "", origin: str = "", texts: bool = False,
    thumbnails: bool = False,
) -> str:  # fmt: skip
    """README.md of a shared set. license: the set's own, by its Hub identifier · origin: where its media come from ·
    texts, thumbnails: whether these are shared.
    """
    counts, modality = manifest["counts"], manifest["modality"]
    media = NOUNS.get(modality, "media")
    sections = [
        _metadata(manifest, license, texts),
        f"# {counts['media']:,} {media} as {_line(manifest['encoder']['name'])} sees them",
        f"Features of a frozen encoder, computed once, to train adapters of language models on. The {media} themselves "
        "aren't here.",
        _use(repo, texts),
        _contents(manifest, texts, thumbnails),
        _origin(manifest, license, origin, media),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(manifest: Mapping[str, Any], license: str, texts: bool) -> str:
    count, modality = manifest["counts"]["media"], manifest["modality"]
    task = TASKS.get(modality)
    data = DatasetCardData(
        license=license or None,
        tags=["periscope", "features", "webdataset", modality],
        size_categories=next((name for most, name in SIZES if count < most), LARGEST),
        task_categories=[task] if task and texts else None,
        configs=[
            {"config_name": "default", "data_files": [{"split": "train", "path": "shard-*.tar"}]},
        ],
    )
    return f"---\n{data.to_yaml()}\n---"


def _use(repo: str, texts: bool) -> str:
    words = "" if texts else " --text captions.jsonl"
    lines = [
        "## Use",
        "With [Periscope](https://pypi.org/project/periscope-adapters/), no encoder and no media needed:",
        f"    periscope train --features hf://{repo}{words} --lm OWNER/MODEL",
    ]
    if not texts:
        lines.append(
            "It comes without words. Each line of your file names a medium by its key or by its name, which are in the "
            'shards: `{"media": ["photos/cat.jpg"], "turns": [{"role": "assistant", "content": "A cat."}]}`.'
        )
    lines.append(
        "Any reader of webdatasets reads the shards: `json` says what a medium was, `safetensors` holds its features."
    )
    return "\n\n".join(lines)


def _contents(manifest: Mapping[str, Any], texts: bool, thumbnails: bool) -> str:
    counts, encoder = manifest["counts"], manifest["encoder"]
    size = sum(shard["bytes"] for shard in manifest["shards"])
    rows = {
        "encoder": f"`{_line(encoder['name'])}` ({_line(encoder.get('library', '?'))}), fingerprint "
        f"`{_line(encoder['fingerprint'])[:16]}`",
        **{kind: _line(describe(entry)) for kind, entry in manifest["features"].items()},
        "media": f"{counts['media']:,}, {counts['heldout']:,} of them held out",
        "texts": f"{counts['texts']:,}, in `{TEXTS}` and in each sample's `json`" if texts else "none",
        "thumbnails": "of held-out media" if thumbnails else "none",
        "size": f"{len(manifest['shards']):,} shards, {size / 1e6:,.1f} MB",
    }
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"## What is in it\n\n| | |\n|---|---|\n{lines}\n\n"
        "`manifest.json` has the sha256 of every file, and says how features were made and stored."
    )


def _origin(manifest: Mapping[str, Any], license: str, origin: str, media: str) -> str:
    where = (
        f"The {media} come from: {_line(origin)}."
        if origin
        else f"Whoever shared this didn't say where the {media} are from."
    )
    own = f"Licence of this set: {_line(license)}." if license else "Whoever shared this named no licence for it."
    return (
        f"## Licence and origin\n\n{where} {own} Features hold much of what their media show; the licence of the "
        f"{media}, that of their words and that of the encoder `{_line(manifest['encoder']['name'])}` may bind "
        "whoever uses them."
    )


def _line(text: object) -> str:
    """Words of data in a line of Markdown, with no markup of their own."""
    plain = " ".join(str(text).replace("`", "'").replace("|", "/").split())
    return plain.replace("<", "&lt;").replace("[", r"\[")
