"""The library's tiny encoders, under the name that tests know."""

from precompute.tiny import *  # noqa: F403
