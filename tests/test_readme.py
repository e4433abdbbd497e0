"""The README: what it points to exists, and its Python is Python that imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from wmrl_ray.cli.configs import available_studies

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)", TEXT)
CLAIMS = re.findall(r"^\|[^|]+\| `(\w+)/`: ([^;|]+)", TEXT, re.MULTILINE)  # of tables and figures
ROMAN = {"I": 1, "II": 2, "III": 3}
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def heading_anchors() -> set[str]:
    """As GitHub makes them: lower case, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_links_and_python_blocks_to_check():
    assert len(LINKS) >= 2 and len(BLOCKS) >= 2


@pytest.mark.parametrize("link", LINKS)
def test_a_link_or_an_image_leads_to_something_in_the_repository(link):
    target, _, anchor = link.partition("#")
    if "://" in target:
        return  # elsewhere: tests use no network
    assert (ROOT / target).exists(), f"README.md points to {target}, which does not exist"
    if not target:
        assert anchor in heading_anchors(), f"README.md points to #{anchor}, which is no heading of it"


@pytest.mark.parametrize("block", BLOCKS)
def test_a_python_block_compiles_and_imports_what_it_needs_from_here(block):
    tree = ast.parse(block)
    ours = [node for node in tree.body if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wmrl_ray")]
    assert ours
    exec(compile(ast.Module(ours, type_ignores=[]), "README.md", "exec"), {})


def named(numbers: str) -> list[str]:
    """`Tables 1, 5, Figures 2 to 4` -> table1, table5, figure2, figure3, figure4."""
    kind, names = "", []
    for word in re.findall(r"(Table|Figure)s? |(\w+)(?: to (\w+))?", numbers):
        kind = word[0].lower() or kind
        if word[1]:
            first, last = (ROMAN.get(number) or int(number) for number in (word[1], word[2] or word[1]))
            names += [f"{kind}{i}" for i in range(first, last + 1)]
    return names


@pytest.mark.parametrize(("folder", "numbers"), CLAIMS)
def test_the_tables_and_figures_that_are_said_to_be_there_are_the_configurations(folder, numbers):
    shipped = {name for name in available_studies() if name.startswith(f"{folder}/")} - {"iql_td_mpc/k_and_h"}
    assert {f"{folder}/{name}" for name in named(numbers)} == shipped


def test_every_paper_with_configurations_is_in_the_table_of_them():
    assert sorted(folder for folder, _ in CLAIMS) == sorted({name.partition("/")[0] for name in available_studies()})


def test_no_placeholder_is_left():
    assert re.findall(r"%[A-Z_]+%", TEXT) == []
