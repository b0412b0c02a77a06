"""Decoding in worker processes that can die: a hostile file ends its worker, is listed, and the run goes on.

slots.py is the memory through which bytes and pixels pass, worker.py runs in a worker, pool.py in the main process,
fork_server.py starts workers.
"""

from periscope.precompute.decoding.pool import DecodingPool, Outcome, decoded, shared_pool
from periscope.precompute.decoding.worker import Source

__all__ = ["DecodingPool", "Outcome", "Source", "decoded", "shared_pool"]
