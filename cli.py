"""The `periscope` command: one name for precompute, train, eval and the tools."""

import importlib
import sys

from periscope.console import run

# name -> (module, function, help)
COMMANDS = {
    "precompute": ("periscope.precompute.cli", "main", "encode images, sound or video once with a frozen encoder"),
    "train": ("periscope.train", "main", "fit an adapter on cached features against a frozen language model"),
    "eval": ("periscope.eval", "main", "answer and score"),
    "features": ("periscope.precompute.__main__", "main", "verify, inspect, merge or recode a feature set"),
    "adapters": ("periscope.adapters.__main__", "main", "import, export or merge adapters"),
}


def main() -> None:
    """Run the subcommand that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        module, function, _ = COMMANDS[name]
        sys.argv = [f"periscope {name}", *sys.argv[2:]]
        run(getattr(importlib.import_module(module), function))
    else:
        print("\n".join(f"  {name:<12} {text}" for name, (_, _, text) in COMMANDS.items()))
        sys.exit(0 if name in ("-h", "--help") else 2)
