"""The library's tiny language models, under the name that tests know."""

from adapters.tiny import *  # noqa: F403
