"""Scores as a LaTeX table for a paper (package booktabs)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.artifacts import atomic_path
from pipeline.records import Scores
from pipeline.reporting.tables import Cell, Column, Table, plain_text, regions, summary_table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "{''}",  # active in some languages of babel
    **{character: "\\" + character for character in "{}$&#_%"},
}
_ARROWS = {"lower": r"$\downarrow$", "higher": r"$\uparrow$", "zero": r"$\rightarrow 0$"}


def escape(text: str) -> str:
    """Return text that LaTeX prints as it stands; control characters and line ends become spaces."""
    return "".join(_SPECIAL.get(character, character) for character in plain_text(text))


def write_latex(path: Path, scores: Scores) -> None:
    r"""Write one ``table`` per region, atomically: methods by metrics, mean and deviation over patients, best in bold.

    The file is read by ``\input``; the document needs ``\usepackage{booktabs}``.
    """
    tables = [_latex(summary_table(scores, region), scores) for region in regions(scores)]
    with atomic_path(path) as partial:
        partial.write_text("% Needs \\usepackage{booktabs}\n" + "\n".join(tables), encoding="utf-8")


def _latex(table: Table, scores: Scores) -> str:
    n = max((row.n for row in scores.summary if row.region == table.region and not row.cohort), default=0)
    caption = (
        f"Profile {scores.profile.get('name', '')}, region {table.region}: "
        f"mean and standard deviation over {n} patient{'s' if n != 1 else ''}."
    )
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        _row("Method", [_head(column) for column in table.columns]),
        r"\midrule",
        *(_row(escape(method), [_number(cell) for cell in cells]) for method, cells in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(first: str, cells: Sequence[str]) -> str:
    return " & ".join([first, *cells]) + r" \\"


def _head(column: Column) -> str:
    unit = f" ({escape(column.unit)})" if column.unit else ""
    return f"{escape(column.title)}{unit} {_ARROWS[column.better]}"


def _number(cell: Cell) -> str:
    number = cell.text.replace("±", r"\pm")
    text = "--" if "–" in number else rf"$\mathbf{{{number}}}$" if cell.best else f"${number}$"
    # The remark is how many cases or patients have a value.
    return f"{text} ({escape(cell.remark)})" if cell.remark else text
