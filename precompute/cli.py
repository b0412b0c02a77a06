"""The command line of precompute.py."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from periscope.console import announce, going_on
from periscope.errors import PrecomputeError
from periscope.exports.ways import WAYS, closed_by_encoder, named_encoder, refusal
from periscope.precompute.config import TINY_MEDIA, PrecomputeConfig, read_config

if TYPE_CHECKING:
    from periscope.precompute.sources import Collection

DEMOS = {"image": "scenes", "audio": "sounds", "video": "clips"}  # modality -> module of periscope.demo
GOES_ON = "run the same command again, which goes on with what is there"


def main(args: Sequence[str] | None = None) -> None:
    """Read the flags and make the feature set; flags override the `[precompute]` table of a recipe.

    Raises PrecomputeError, RunError or FeatureSetError for mistakes that the user can mend.
    """
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")  # file names needn't be Unicode
    run(read_config(args))


def run(config: PrecomputeConfig) -> None:
    """Find the media, load the encoder, and encode. Names and media come first, because importing torch takes
    seconds.
    """
    announce(f"precompute: {config.data or 'the demo'}, encoder {config.encoder}")
    from periscope.atomic import check_writable
    from periscope.device import check_device
    from periscope.precompute.encoders.hub import check_within_reach
    from periscope.precompute.encoders.names import check_encoder
    from periscope.precompute.media.limits import Limits, set_limits
    from periscope.precompute.plan import refuse_other_media
    from periscope.precompute.remote import collected
    from periscope.shards.layout import check_storage

    check_encoder(config.encoder)
    if config.tiny and config.encoder.startswith("demo"):
        raise PrecomputeError(
            f"--tiny makes a small model in place of a published one, and the encoder {config.encoder} is none; name "
            "one with --encoder, such as siglip2-b, or leave --tiny out"
        )
    refuse_named(config)
    check_device(config.device)
    check_storage(config.storage.store, config.storage.pool)
    chosen = config.limits
    set_limits(Limits(chosen.max_pixels, chosen.max_bytes, chosen.max_seconds, chosen.max_memory))
    demo = config.demo_media
    suffix = "" if demo.demo == "image" else f"-{demo.demo}"
    out = config.out or Path("features") / (_set_name(config, f"demo{suffix}") + "-tiny" * config.tiny)
    check_writable(out)
    data = config.data
    if data is None:
        few = config.limit or (TINY_MEDIA if config.tiny else 0)
        data = make_demo(demo.demo, Path("demo/media") / f"seed-{demo.demo_seed}{suffix}", demo.demo_seed, few)
        if config.encoder == "demo":
            config = replace(config, encoder=f"demo{suffix}")
    with going_on(lambda: GOES_ON), collected(data, config.selection.language) as collection:
        refuse_other_media(collection, config.encoder)
        if not config.tiny:
            check_within_reach(config.encoder)
        _encode(config, collection, out)


def refuse_named(config: PrecomputeConfig) -> None:
    """Raise PrecomputeError where what is named can't be exported as `--for` says: before torch is imported and an
    encoder is fetched. `prepare.refuse_closed` looks again at the encoder itself.
    """
    if config.for_ is None:
        return
    from periscope.precompute.encoders.names import ENCODERS

    short = ENCODERS.get(config.encoder)
    facts = named_encoder(
        config.encoder,
        short.modality if short else "",
        short.tower if short else "",
        config.preprocessing.resize,
        config.kinds or (),
        config.storage.pool != "1x1",
    )
    facts = replace(facts, cls_token=bool(config.encoder_choices().get("cls_token")))
    if sentence := refusal(config.for_, closed_by_encoder(WAYS[config.for_], facts)):
        raise PrecomputeError(sentence)


def _encode(config: PrecomputeConfig, collection: "Collection", out: Path) -> None:
    from periscope.device import choose_device
    from periscope.precompute.allocator import keep_freed_memory
    from periscope.precompute.pipeline.job import precompute
    from periscope.precompute.plan import without_words
    from periscope.precompute.prepare import prepare

    job = prepare(config, collection, out, choose_device(config.device))
    keep_freed_memory()
    try:
        precompute(job)
    except KeyboardInterrupt:
        print(f"\nrun the same command again to go on; {out} keeps every whole shard", file=sys.stderr)
        raise
    if advice := without_words(collection):
        print(advice)


def make_demo(modality: str, folder: Path, seed: int, limit: int = 0) -> Path:
    """Draw the demo's media into `folder`, unless they are there, and return it.

    limit: draw only so many (0: all), a tenth of them in each held-out split, into a folder that ends in their number.
    Raises PrecomputeError.
    """
    counts = {}
    if limit:
        folder, held = folder.with_name(f"{folder.name}-{limit}"), limit // 10
        counts = {"train": limit - 2 * held, "heldout": held, "new_pairs": held}
    print(f"the demo's {DEMOS[modality]}: {folder} (drawn now if they aren't there)")
    try:
        return importlib.import_module(f"periscope.demo.{DEMOS[modality]}").make(folder, seed=seed, **counts)
    except ValueError as error:
        raise PrecomputeError(str(error)) from error


def _set_name(config: PrecomputeConfig, demo: str) -> str:
    """The name of the feature set without --out: that of the data, else of the recipe, else the demo's."""
    if config.data is None:
        return Path(config.recipe).name.removesuffix(".toml") or demo
    data = config.data.resolve()
    if data.name == "texts.jsonl":
        return data.parent.name
    return data.stem if data.suffix == ".jsonl" else data.name or "data"
