"""Prints the dependencies at their lower bounds, as constraints for pip; `make test-floors` installs them."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
_BOUND = re.compile(r"([A-Za-z0-9_.-]+)>=([0-9.]+)")


def floor(requirement: str) -> str:
    """`name>=version` as `name==version`."""
    bound = _BOUND.fullmatch(requirement)
    if bound is None:
        raise SystemExit(f"{requirement!r} has no lower bound alone; write it as NAME>=VERSION")
    return f"{bound[1]}=={bound[2]}"


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    print("\n".join(map(floor, project["dependencies"])))
