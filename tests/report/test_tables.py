"""A paper's table as text for the terminal and as Markdown."""

from __future__ import annotations

import os

import pytest

from tests.report.studies import ROW
from wmrl_ray.config import ConfigError
from wmrl_ray.report.tables import as_markdown, as_text


@pytest.mark.parametrize("width", [60, 80, 120, 240])
def test_the_text_fits_the_terminal_and_shows_every_cell(pair, width):
    _, study = pair([1.0, 2.0, 3.0], [60.0, 64.0, 65.0])
    lines = as_text(study, width).splitlines()
    table = lines[lines.index("") : len(lines) - lines[::-1].index("")]
    assert max(map(len, table)) <= width
    text = "\n".join(table)
    assert all(head in text for head in study["columns"].values())
    assert text.count("(+61.0) ▲") == 1 and text.count("3 → 64 (+61)") == 1
    assert sum(line.startswith(ROW) for line in table) == sum("maze2d-umaze-v1" in line for line in table)


def test_the_markdown_is_one_table_whose_rows_have_all_columns(pair):
    _, study = pair([1.0, 2.0, 3.0], [60.0, 64.0, 65.0])
    rows = [line for line in as_markdown(study).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 14
    assert {row.count("|") for row in rows} == {8}
    assert "**2.0 → 63.0 (+61.0) ▲**<br>3 seeds, p \\< 0.001<br><sub>paper 3 → 64 (+61)</sub>" in as_markdown(study)


def test_the_command_prints_the_table_and_writes_markdown(pair, tmp_path, capsys, monkeypatch):
    from wmrl_ray.cli.app import app

    pair([1.0, 2.0, 3.0], [60.0, 64.0, 65.0])
    capsys.readouterr()
    monkeypatch.setitem(os.environ, "COLUMNS", "100")
    out, markdown = tmp_path / "page.html", tmp_path / "table.md"
    app(["report", str(tmp_path / "runs"), "-o", str(out), "--markdown", str(markdown)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "2.0 → 63.0 (+61.0) ▲" in printed and "3 → 64 (+61)" in printed
    assert printed.splitlines()[-1] == f"{out}   (numbers: {out.with_suffix('.json')})"
    assert markdown.read_text().startswith("### Table II of IQL-TD-MPC")
    with pytest.raises(ConfigError, match="no table of a paper"):
        app(["report", str(tmp_path / "runs" / "bc-baseline-0"), "-o", str(out), "--markdown", "x.md"], standalone_mode=False)
