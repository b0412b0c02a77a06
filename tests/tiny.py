"""The library's tiny language models, under the name that tests know."""

from periscope.adapters.lm.tiny import *  # noqa: F403
