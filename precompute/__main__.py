"""Tools on a finished feature set: python -m precompute verify|inspect SET."""

from pathlib import Path


def verify(folder: Path, /) -> None:
    """Check every byte of a feature set against its manifest."""
    from shards.verify import verify

    print(verify(folder))


def inspect(folder: Path, /) -> None:
    """Print what a feature set holds."""
    from shards.verify import inspect

    print(inspect(folder))


def main() -> None:
    """Dispatch to the tool that is named first."""
    import sys

    import tyro

    sys.stdout.reconfigure(errors="backslashreplace")  # file names needn't be Unicode
    tyro.extras.subcommand_cli_from_dict({"verify": verify, "inspect": inspect}, description=__doc__)


if __name__ == "__main__":
    from console import run

    run(main)
