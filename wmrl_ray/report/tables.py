"""The words in the cells of a study's table, and the table as plain text and as Markdown; the page is report.html."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wmrl_ray.report.words import count, number, signed

Paint = Callable[[str, str], str]  # (style, text) -> text with colours

MARKS = {"better": "▲", "worse": "▼"}
STAND_INS = (
    "Ours were measured on datasets that this project made in place of D4RL's, on scales of their own. Ours and the paper's "
    "are different scales: compare the direction of a change within a cell, never the numbers."
)
LEGEND = {
    "pair": "▲ green: better than the baseline, ▼ red: worse (Welch's two-sided t-test over seeds, p < 0.05). † a run is "
    "unfinished. Nothing is tested before all planned seeds have finished. Grey, last: the paper's values; which of them it "
    "prints green or red is not known here.",
    "score": "Mean ± sample deviation over seeds; bold: within one standard deviation of the best of ours in the row. "
    "† a run is unfinished. Grey, last: the paper's values.",
}


def ours(cell: Mapping[str, Any]) -> str:
    """`12.3 → 45.6 (+33.3) ▲`, `71.4 ± 35.0`, `12.3 → –`, `–`."""
    arms = list(cell["arms"].values())
    if all(arm["mean"] is None for arm in arms):
        return "–"
    if len(arms) == 1:
        digits = cell["digits"]
        text = number(arms[0]["mean"], digits) + ("" if arms[0]["std"] is None else f" ± {number(arms[0]['std'], digits)}")
    else:
        text = " → ".join(number(arm["mean"]) for arm in arms)
    text += "" if cell["delta"] is None else f" ({signed(cell['delta'])})"
    marks = [MARKS[cell["verdict"]]] if cell["verdict"] in MARKS else []
    marks += ["†"] if any(arm["unfinished"] for arm in arms) else []
    return " ".join([text, *marks])


def detail(cell: Mapping[str, Any]) -> str:
    """`5 seeds, p = 0.003`; empty where nothing was run."""
    arms = list(cell["arms"].values())
    if not any(arm["seeds"] for arm in arms):
        return ""
    words = [_seeds(arms)]
    if cell["p"] is not None:
        words.append("p < 0.001" if cell["p"] < 0.001 else f"p = {cell['p']:.3f}")
    if cell["why_no_test"] is not None:
        words.append(f"{cell['why_no_test']}: no test")
    return ", ".join(words)


def papers(cell: Mapping[str, Any]) -> str:
    """`51 → 86 (+35)` or `52.0 ± 46.0`: the digits that the paper prints. Behind it ours minus the paper's, on D4RL only."""
    printed = cell["paper"]
    if "mean" in printed:
        text = f"{printed['mean']}" + ("" if printed["std"] is None else f" ± {printed['std']}")
        text += "" if cell["delta_to_paper"] is None else f" (ours {signed(cell['delta_to_paper'])})"
    else:
        delta = printed["ours"] - printed["baseline"]
        text = f"{printed['baseline']} → {printed['ours']} ({delta:+g})"
    return text.replace("-", "\N{MINUS SIGN}")


def style(cell: Mapping[str, Any]) -> str:
    """`better` or `worse` where that is significant, `bold` for the best of a row, or `plain`."""
    return cell["verdict"] if cell["verdict"] in MARKS else "bold" if cell["bold"] else "plain"


def title(study: Mapping[str, Any]) -> str:
    point = "" if study["point"] is None else f", with {study['point']}"
    return f"{study['title']} of {study['paper_title']} ({study['source']}){point}"


def about(study: Mapping[str, Any]) -> list[str]:
    """The sentences above a table: what the paper's is, and how long ours and the paper's were trained."""
    done = "none has been evaluated yet" if study["updates"] is None else f"evaluated after {_range(study['updates'])} updates"
    return [
        f"The paper's: {study['caption']}",
        f"Ours: {study['num_runs']} of {study['num_planned']} planned runs, {done}; the last evaluation of each.",
    ]


def as_text(study: Mapping[str, Any], width: int = 100, paint: Paint = lambda style, text: text) -> str:
    """The table for a terminal of `width` characters: as many columns side by side as fit, each row ours above the paper's.

    paint: colours text in the style "paper" or one of `style`.
    """
    heads = list(study["columns"].values())
    blocks = [[_lines(cell) for cell in row["cells"]] for row in study["rows"]]  # [row][column] -> lines
    first = max(len(row["name"]) for row in study["rows"])
    widths = [max(map(len, [head, *(line for block in blocks for line in block[k])])) for k, head in enumerate(heads)]
    prose = [f"{title(study)}: ours and the paper's"]
    prose += [f"STAND-IN DATA. {STAND_INS}"] * study["stand_ins"] + about(study)
    lines = [textwrap.fill(text, max(width, 40)) for text in prose]
    for columns in _fitting(widths, width - first):
        lines += ["", " " * first + "".join(f"  {heads[k]:<{widths[k]}}" for k in columns).rstrip()]
        for row, block in zip(study["rows"], blocks, strict=True):
            for i in range(3):
                texts = [block[k][i] for k in columns]
                if i == 1 and not any(texts):
                    continue
                line = f"{row['name'] if i == 0 else '':<{first}}"
                for k, text in zip(columns, texts, strict=True):
                    painted = paint("paper" if i == 2 else style(row["cells"][k]), text) if text else ""
                    line += f"  {painted}{' ' * (widths[k] - len(text))}"
                lines.append(line.rstrip())
    notes = [LEGEND[study["form"]], *(f"[{i}] {note}" for i, note in enumerate(study["notes"], 1))]
    return "\n".join([*lines, "", *(textwrap.fill(text, max(width, 40)) for text in notes)])


def as_markdown(study: Mapping[str, Any]) -> str:
    """The table as GitHub's Markdown."""
    lines = [f"### {_escaped(title(study))}", ""]
    lines += [f"**Stand-in data.** {STAND_INS}", ""] * study["stand_ins"]
    lines += [line for text in about(study) for line in (_escaped(text), "")]
    lines += [f"| | {' | '.join(study['columns'].values())} |", "|---" * (len(study["columns"]) + 1) + "|"]
    for row in study["rows"]:
        lines.append(f"| {_escaped(row['name'])} | {' | '.join(map(_markdown, row['cells']))} |")
    lines += ["", _escaped(LEGEND[study["form"]]), ""]
    lines += [f"- [{i}] {_escaped(note)}" for i, note in enumerate(study["notes"], 1)]
    return "\n".join(lines).rstrip() + "\n"


def _lines(cell: Mapping[str, Any]) -> tuple[str, str, str]:
    return ours(cell) + "".join(f"[{i}]" for i in cell["notes"]), detail(cell), papers(cell)


def _fitting(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns in groups that fit side by side, at least one in each."""
    groups: list[list[int]] = [[]]
    used = 0
    for k, width in enumerate(widths):
        if groups[-1] and used + width + 2 > room:
            groups.append([])
            used = 0
        groups[-1].append(k)
        used += width + 2
    return groups


def _seeds(arms: Sequence[Mapping[str, Any]]) -> str:
    """`5 seeds`, `1 seed`, `3 of 5 seeds`, and `2 of 5 | 5 seeds` where the arms differ."""
    each = [
        str(len(arm["seeds"])) + (f" of {arm['num_planned']}" if len(arm["seeds"]) < arm["num_planned"] else "") for arm in arms
    ]
    text = each[0] if len(set(each)) == 1 else " | ".join(each)
    return f"{text} seed{'' if text == '1' else 's'}"


def _range(ends: Sequence[int]) -> str:
    return count(ends[0]) if ends[0] == ends[1] else f"{count(ends[0])} to {count(ends[1])}"


def _markdown(cell: Mapping[str, Any]) -> str:
    text = f"**{ours(cell)}**" if cell["bold"] or cell["verdict"] in MARKS else ours(cell)
    text += "".join(f" \\[{i}\\]" for i in cell["notes"])
    return "<br>".join(part for part in (text, _escaped(detail(cell)), f"<sub>paper {papers(cell)}</sub>") if part)


def _escaped(text: str) -> str:
    """Text that neither ends a cell of a Markdown table nor becomes markup."""
    for character in "\\|*_<>[]`":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
