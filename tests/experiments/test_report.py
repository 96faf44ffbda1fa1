import base64
import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from experiments import report
from experiments.report import Picture

ROW = {
    "id": "D1",
    "statement": "the variance is <b>1/2</b> & no more",
    "source": "a paper, eq. 3",
    "primary": True,
    "expected": "holds",
    "rule": "equal",
    "cells": [
        {"name": "DDIM", "reference": 0.5, "margin": 0.005, "margin_reason": "1 %", "test": "t", "values": [0.5, 0.4]}
        | {"interval": [0.49123456, None], "p": 0.00041}
    ],
    "measured": 0.4993456,
    "stderr": 0.0007,
    "reference": 0.5,
    "verdict": "holds",
    "reason": "",
    "seeds": 8,
    "seconds": 4.1,
    "preset": "ci",
    "scale": "full",
}
OTHER = {**ROW, "id": "D2", "verdict": "refuted", "reason": "the step is too long"}
OPEN = {**ROW, "id": "D3", "verdict": "not run", "cells": [], "measured": None, "stderr": None, "reason": "no weights"}


class Page(HTMLParser):
    """Collects the text, the classes and the addresses of a page, and that its tags nest."""

    def __init__(self, page):
        super().__init__()
        self.words, self.addresses, self.classes, self.stack, self.tags = [], [], [], [], []
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data")]
        self.classes += [value for name, value in attrs if name == "class"]
        if tag not in ("meta", "img", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words += data.split()


@pytest.fixture
def page():
    return report.render(
        "digits",
        "Finished 2026-01-01T00:00:00Z",
        settings={"preset": "ci", "seed": 3, "config": {"scales": [1.0, 2.5], "name": "<i>"}},
        environment={"started": "2026-01-01T00:00:00Z", "versions": {"jax": "0.10.2"}, "commit": None},
        rows=[ROW, OTHER, OPEN],
        pictures=[Picture("grid", "Ten digits & <more>.", b"\x89PNG")],
        notes=["A note with <script>alert(1)</script>."],
    )


def test_the_page_fetches_nothing_and_text_cannot_become_markup(page):
    found = Page(page)
    assert found.addresses == ["data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()]
    assert not {"script", "link", "iframe", "object", "i", "b"} & set(found.tags)
    assert not re.search(r"https?://|@import|url\(", page)


def test_the_page_tells_settings_figures_notes_and_every_claim(page):
    text = " ".join(Page(page).words)
    for said in (
        "Finished 2026-01-01T00:00:00Z",
        "1 holds, 1 refuted, 0 inconclusive, 1 not run",
        "D1 the variance is <b>1/2</b> & no more a paper, eq. 3; rule: equal",
        "the step is too long",
        "0.4993 ± 0.0007",
        "[0.4912, -]",
        "0.00041",
        "refuted expected: holds",
        "no weights",
        "scales [1, 2.5]",
        "jax 0.10.2",
        "commit -",
        "A note with <script>alert(1)</script>.",
        "Ten digits & <more>.",
    ):
        assert said in text
    assert Page(page).classes.count("verdict holds") == 1
    assert Page(page).classes.count("verdict not-run") == 1


def test_the_table_of_verdicts_names_what_was_not_expected():
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report.verdict_table([ROW, {**OTHER, "statement": "[bold]x[/bold]"}, OPEN]))
    lines = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
    assert "D1 the variance is <b>1/2</b> & no more 0.5 0.4993 ± 0.0007 holds" in lines
    assert "D2 [bold]x[/bold] 0.5 0.4993 ± 0.0007 refuted (expected: holds)" in lines
    assert "D3 the variance is <b>1/2</b> & no more 0.5 - not run" in lines
