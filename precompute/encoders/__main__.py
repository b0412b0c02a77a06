"""The table of encoders: python -m precompute.encoders > docs/encoders.md"""

from periscope.precompute.encoders.names import ENCODERS, EncoderEntry
from periscope.shards.codecs import CODECS
from periscope.shards.features import settle_storage, stored_bytes
from periscope.units import format_bytes

HEAD = """# Encoders

What `--encoder` takes by a short name. Besides these: any open_clip model (`open_clip:ARCHITECTURE/TAG`), any vision
transformer of timm (`timm:NAME`, at another size `timm:NAME@384`), any CLIP, SigLIP, DINO, ViT, AST, CLAP, Whisper,
TimeSformer, VideoMAE, ViViT or V-JEPA 2 model on the Hub (`OWNER/NAME`) or in a folder, several encoders of pictures
joined by `+` (`dinov2-l+clip-l`), and one of pictures over the frames of clips (`--frames 8`).

`pooled` is the tower's own output vector before L2 normalisation; `patches` are the tokens without CLS and registers,
without the final norm, after the last but one block unless `--layer` says otherwise; `layers` is the CLS after each of
the last six blocks, through the final norm. Where a tower has no vector of its own (Whisper, VideoMAE, V-JEPA 2),
`pooled` is the mean of its last tokens. CLAP gives the map after its last block. The bytes are those of one medium's
features as `--store` keeps them; vectors stay fp16. The licence is that of the weights, as far as known here: read the
model card before you use or share what you make.

This page is made by `python -m precompute.encoders`; a test holds its shapes against the libraries' own models.
"""
MEDIA = {"image": "Pictures", "audio": "Sounds", "video": "Clips"}
COLUMNS = (
    *("Name", "What it is", "pooled", "patches (grid)", "layers"),
    *(f"patches {codec}" for codec in CODECS),
    *("pooled", "layers", "Download", "Licence"),
)


def table() -> str:
    """The page: for each medium a table with a row for each short name."""
    parts = [HEAD]
    for modality, title in MEDIA.items():
        rows = [_row(name, row) for name, row in ENCODERS.items() if row.modality == modality]
        lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
        parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


def _row(name: str, row: EncoderEntry) -> list[str]:
    features = row.features()
    kept = {codec: settle_storage(features, [codec]) for codec in CODECS}
    shape = lambda kind: " x ".join(map(str, features[kind]["shape"])) if kind in features else "-"  # noqa: E731
    vector = lambda kind: format_bytes(stored_bytes(features[kind])) if kind in features else "-"  # noqa: E731
    return [
        f"`{name}`",
        row.about,
        shape("pooled"),
        f"{shape('patches')} ({row.grid[0]} x {row.grid[1]})",
        shape("layers"),
        *(format_bytes(stored_bytes(kept[codec]["patches"])) for codec in CODECS),
        vector("pooled"),
        vector("layers"),
        row.size,
        row.licence,
    ]


if __name__ == "__main__":
    print(table(), end="")
