"""Adapters from and for other programs: python -m adapters import-epalm|export-prompt|merge-lora."""

from typing import Any


def main() -> None:
    """Run the tool that is named first."""
    import tyro

    from periscope.adapters.io.export_peft import export_prompt
    from periscope.adapters.io.import_epalm import import_epalm
    from periscope.adapters.io.merge_lora import merge

    tools: dict[str, Any] = {"import-epalm": import_epalm, "export-prompt": export_prompt, "merge-lora": merge}
    tyro.extras.subcommand_cli_from_dict(tools, description=__doc__)


if __name__ == "__main__":
    from periscope.console import run

    run(main)
