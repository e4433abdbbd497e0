"""The README: what it points to exists, and its Python is Python that imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)", TEXT)
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


def test_no_placeholder_is_left():
    assert re.findall(r"%[A-Z_]+%", TEXT) == []
