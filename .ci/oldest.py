"""Print a constraint for each dependency of pyproject.toml: the lowest version that it allows."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"].items()
for line in [*project["dependencies"], *(line for name, lines in extras if name != "dev" for line in lines)]:
    if bound := re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?>=([0-9][0-9.]*)", line):
        # ~= takes the newest patch of it: a first release may have been withdrawn.
        print(f"{bound[1]}~={bound[2]}.0" if bound[2].count(".") == 1 else f"{bound[1]}~={bound[2]}")
