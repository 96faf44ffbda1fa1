"""Show the ledger: on a terminal, as one HTML page, as the table of the README."""

import importlib.resources
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import files
from experiments.claims import VERDICTS
from experiments.ledger.runs import Entry, Paper
from experiments.report import number
from experiments.strict_json import read_text

_COLOURS = {"holds": "green", "refuted": "red", "inconclusive": "yellow", "not run": "bright_black"}
_MARKERS = ("<!-- ledger -->", "<!-- /ledger -->")
_PIPED_WIDTH = 140  # columns where the output is no terminal


def show(papers: Sequence[Paper]) -> None:
    """Print the counts of each paper, then every row."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED_WIDTH)
    console.print(_counts(papers))
    console.print(_rows(papers))


def write_html(papers: Sequence[Paper], path: Path) -> None:
    """Write one page that needs nothing beside it; text from runs is escaped."""
    import jinja2

    template = importlib.resources.files("experiments.ledger").joinpath("ledger.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    page = environment.from_string(template).render(papers=papers, verdicts=VERDICTS, origin=origin)
    files.write_whole(path, page)


def write_readme(papers: Sequence[Paper], path: Path) -> None:
    """Replace what stands between the two markers of the README."""
    text = read_text(path)
    start, end = text.find(_MARKERS[0]), text.find(_MARKERS[1])
    if not 0 <= start < end or any(text.count(marker) != 1 for marker in _MARKERS):
        raise ValueError(f"{path} needs the markers {_MARKERS[0]} and {_MARKERS[1]}, once each and in this order")
    files.write_whole(path, f"{text[: start + len(_MARKERS[0])]}\n{markdown(papers)}{text[end:]}")


def markdown(papers: Sequence[Paper]) -> str:
    """Write the ledger in markdown: the counts, and every row folded away below them."""
    lines = [_line("paper", *VERDICTS, "preset"), _line(*["---"] * (len(VERDICTS) + 2))]
    lines += [_line(p.experiment, *map(str, p.counts.values()), p.presets) for p in papers]
    lines += ["", "<details><summary>Every claim</summary>", ""]
    lines += [_line("claim", "statement", "reference", "measured", "verdict", "state"), _line(*["---"] * 6)]
    for paper in papers:
        for entry in paper.entries:
            row = entry.row
            name, measured = f"{paper.experiment} {row['id']}", _measured(entry)
            lines.append(_line(name, row["statement"], number(row["reference"]), measured, _said(entry), origin(entry)))
    return "\n".join([*lines, "", "</details>", ""])


def origin(entry: Entry) -> str:
    """Say at which preset and scale a row was measured, and how fresh it is."""
    words = [entry.run.preset]
    if entry.row["scale"] == "reduced":
        words.append("reduced")
    if entry.run.kept:
        words.append("kept")
    if entry.state != "current":
        words.append("stale" if entry.state == "stale" else "code unknown")
    return ", ".join(words)


def _counts(papers: Sequence[Paper]) -> Table:
    table = Table("paper", title="Verdicts, after Holm's correction over each paper", title_justify="left")
    for verdict in VERDICTS:
        table.add_column(verdict, justify="right", style=_COLOURS[verdict])
    table.add_column("preset")
    for paper in papers:
        table.add_row(paper.experiment, *map(str, paper.counts.values()), paper.presets)
    return table


def _rows(papers: Sequence[Paper]) -> Table:
    table = Table(
        "claim", "statement", "reference", "measured", "verdict", "p (Holm)", "seeds", "state", show_lines=True
    )
    for paper in papers:
        for entry in paper.entries:
            row = entry.row
            p = row["p"] if row["adjusted_p"] is None else row["adjusted_p"]
            said = Text(_said(entry), style=_COLOURS[row["verdict"]])
            statement = Text(row["statement"])
            if row["reason"]:
                statement.append(f"\n{row['reason']}", style="dim")
            cells = (number(row["reference"]), _measured(entry))
            name = Text(f"{paper.experiment} {row['id']}")
            table.add_row(name, statement, *cells, said, number(p), str(row["seeds"] or "-"), origin(entry))
    return table


def _measured(entry: Entry) -> str:
    row = entry.row
    spread = f" ± {number(row['stderr'])}" if row["stderr"] else ""
    return number(row["measured"]) + spread


def _said(entry: Entry) -> str:
    row = entry.row
    unexpected = row["verdict"] not in ("not run", row["expected"])
    return f"{row['verdict']} (expected: {row['expected']})" if unexpected else row["verdict"]


def _line(*cells: str) -> str:
    plain = [" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;") for cell in cells]
    return f"| {' | '.join(plain)} |"
