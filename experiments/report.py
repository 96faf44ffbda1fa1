"""A run told to a person: one self-contained page, and the table of its verdicts."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from experiments import training_curves
from experiments.claims import VERDICTS
from experiments.training_curves import Plot

_COLOURS = {"holds": "green", "refuted": "red", "inconclusive": "yellow", "not run": "bright_black"}


class Picture(NamedTuple):
    """A figure of the page: its file's name, what it shows, and the bytes of its PNG."""

    name: str
    caption: str
    png: bytes


def render(
    title: str,
    outcome: str,
    *,
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    pictures: Sequence[Picture],
    notes: Sequence[str],
    curves: Sequence[Plot] = (),
    reload: int | None = None,
) -> str:
    """Render the page of a run: nothing in it is fetched, and text of the run cannot become markup.

    Args:
        title: name of the experiment.
        outcome: how the run ended, a sentence.
        settings: what `config.json` holds.
        environment: what `environment.json` holds.
        rows: what `claims.json` holds.
        pictures: the figures, in their order.
        notes: paragraphs.
        curves: how training went, a plot a metric.
        reload: seconds after which the page loads itself again, None for a page that stays as it is.
    """
    import jinja2

    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["number"] = number
    return page.from_string(template).render(
        title=title,
        outcome=outcome,
        settings=settings,
        environment=environment,
        rows=rows,
        counts=count(rows),
        pictures=[(p.name, p.caption, base64.b64encode(p.png).decode()) for p in pictures],
        notes=notes,
        curves=curves,
        frame=training_curves.FRAME,
        reload=reload,
    )


def verdict_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Lay the verdicts of a run out for the terminal, a claim a line."""
    table = Table("claim", "statement", "reference", "measured", "verdict", title_justify="left")
    for row in rows:
        measured = number(row.get("measured"))
        if row.get("stderr") is not None:
            measured += f" ± {number(row['stderr'])}"
        said = row["verdict"]
        if said not in ("not run", row["expected"]):
            said += f" (expected: {row['expected']})"
        cells = (row["id"], row["statement"], number(row.get("reference")), measured)
        table.add_row(*map(Text, cells), Text(said, style=_COLOURS[row["verdict"]]))
    return table


def count(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how many claims there are of each verdict."""
    found = Counter(row["verdict"] for row in rows)
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS)


def number(value: Any) -> str:
    """Write a number with four digits, a list of them in brackets, nothing as a dash, anything else as it is."""
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(number, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
