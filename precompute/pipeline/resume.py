"""What an earlier run already did, and what is left to encode."""

from collections.abc import Mapping
from concurrent.futures import Executor

from periscope.bars import progress_bar
from periscope.errors import PrecomputeError
from periscope.precompute.pipeline.filters import Filters
from periscope.precompute.pipeline.reader import content_hash
from periscope.precompute.sources import Medium
from periscope.shards.write import SetWriter, make_key
from periscope.text import printable


def keys_of(media: Mapping[str, Medium]) -> dict[str, Medium]:
    """Origin -> medium, by key. Raises PrecomputeError when two origins get the same key."""
    keys = {make_key(origin): medium for origin, medium in media.items()}
    if len(keys) != len(media):
        raise PrecomputeError("two media get the same key, which 64 bits of sha256 make all but impossible: rename one")
    return keys


def media_to_encode(
    writer: SetWriter, media: Mapping[str, Medium], threads: Executor, filters: Filters
) -> dict[str, Medium]:
    """The media (key -> medium) that must be encoded now: all but those in whole shards with the same content, and
    those that an earlier run left out for a reason that still holds.
    """
    rows = [row for row in writer.rejected if filters.settled(row["reason"])]
    rejected = {make_key(row["origin"]): row.get("sha256", "") for row in rows}
    known = writer.known()
    check = [key for key in media if key in known or key in rejected]
    before = [known[key][1] if key in known else rejected[key] for key in check]
    hashes = threads.map(content_hash, (media[key] for key in check), before)
    bar = progress_bar(hashes, "checking", len(check), unit="", leave=False, delay=1)
    now = dict(zip(check, bar, strict=True))
    kept = writer.settle(now)
    kept |= {key for key, digest in rejected.items() if now.get(key) == digest}
    return {key: medium for key, medium in media.items() if key not in kept}


def refuse_lost_media(writer: SetWriter, media: Mapping[str, Medium], threads: Executor) -> None:
    """Raise PrecomputeError when a finished set holds media that are gone, unless they only have other names now."""
    known = writer.known()
    gone = {origin: digest for key, (origin, digest) in known.items() if key not in media}
    if not writer.manifest or not gone:
        return
    unknown = [medium for key, medium in media.items() if key not in known]
    contents = set(threads.map(content_hash, unknown))
    if lost := [origin for origin, digest in gone.items() if digest not in contents]:
        raise PrecomputeError(
            f"{writer.folder} holds {len(lost)} media that aren't asked for now ({min(lost)}): "
            "choose another --out, or the same --data and --limit"
        )
    print(f"{len(gone)} media have other names now and are encoded under these ({printable(min(gone))})")
