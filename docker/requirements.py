"""Prints what pyproject.toml asks for, one requirement per line: `torch` alone, or everything with the extras EXTRA,EXTRA."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(project: dict, asked: str) -> list[str]:
    """Raises KeyError for an extra that does not exist."""
    needed = list(project["dependencies"])
    if asked == "torch":
        return [line for line in needed if line.startswith("torch")]
    for extra in filter(None, asked.split(",")):
        needed += project["optional-dependencies"][extra]
    return needed


if __name__ == "__main__":
    print("\n".join(requirements(tomllib.loads(Path("pyproject.toml").read_text())["project"], sys.argv[1])))
