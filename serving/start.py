"""Runs the server: the models, the application and uvicorn."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from periscope.evaluation.config import ServeConfig
from periscope.inference import LoadedModel
from periscope.precompute.media.limits import Limits, set_limits
from periscope.serving.requests import Fetch
from periscope.serving.stand_ins import StandIns

KEEP_ALIVE, SHUTDOWN = 30, 5  # seconds that a connection stays open unused, and that answers have left at the end


def serve(
    models: Mapping[str, LoadedModel], config: ServeConfig, token: str, stand_ins: Mapping[str, StandIns] | None = None
) -> None:
    """Answer requests until Ctrl-C or SIGTERM. stand_ins: as `Engine` has them."""
    import uvicorn

    from periscope.serving.app import ended_at_shutdown, make_app
    from periscope.serving.engine import Engine

    limits = config.limits
    fetch: Fetch | None = None
    set_limits(Limits(limits.max_pixels, limits.max_upload, limits.max_seconds))
    if config.fetch_urls:
        from periscope.serving.fetching import fetcher

        fetch = fetcher(limits.max_upload)
    page = config.page and find_spec("gradio") is not None
    where = "with a page at /" if page else "without a page (pip install 'periscope-adapters[page]')"
    print(f"models: {', '.join(models)}; {'with a token' if token else 'for this machine alone'}; {where}")
    with Engine(models, limits, fetch, stand_ins) as engine, TemporaryDirectory(prefix="periscope-page-") as uploads:
        uvicorn.run(
            ended_at_shutdown(make_app(engine, token, Path(uploads) if page else None)),
            host=config.host,
            port=config.port,
            log_level="info",
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=SHUTDOWN,
        )
