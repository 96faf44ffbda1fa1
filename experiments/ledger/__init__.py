"""The ledger: every claim over all finished runs, its reference, what was measured, the verdict."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.ledger.options import Options

SUMMARY = "One page over all finished runs: every claim, its reference, what was measured, the verdict."
ROOT = Path(__file__).resolve().parents[2]  # the checkout, which holds README.md and the kept results
_CHECK_FAILED, _REFUSED, _CONTRADICTED = 1, 2, 3


def main(argv: Sequence[str], *, root: Path = ROOT) -> int:
    """Run the ledger's command line.

    Args:
        argv: Arguments after `ledger`.
        root: The checkout whose kept results, README and git history are used.

    Returns:
        0 done; 1 a recomputed verdict differs (`--check`) or a file could not be written; 2 bad arguments or input;
        3 a row contradicts what its claim expects (`--strict`).
    """
    from experiments.ledger.options import parse

    try:
        return _ledger(parse(argv), root)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return _REFUSED
    except OSError as error:
        print(f"error: {error.filename or 'the disk'}: {error.strerror}", file=sys.stderr)
        return _CHECK_FAILED


def _ledger(options: "Options", root: Path) -> int:
    from experiments.ledger import check, keep, render, runs

    found, skipped = runs.finished_runs(options.runs)
    if options.keep:
        print(f"kept in {keep.keep(options.keep, root)}")
    papers = runs.join(found + runs.kept_runs(root), root)
    if skipped:
        print(f"left out, not finished: {', '.join(map(str, skipped))}")
    if not papers:
        print(f"no finished run below {options.runs} and no kept results; start with: python -m experiments digits")
        return 0
    render.show(papers)
    if options.html:
        render.write_html(papers, options.html)
        print(f"wrote {options.html}")
    if options.readme:
        render.write_readme(papers, root / "README.md")
        print(f"wrote {root / 'README.md'}")
    entries = [entry for paper in papers for entry in paper.entries]
    code = _CHECK_FAILED if options.check and check.report(entries) else 0
    if options.strict and not code:
        contradicting = [f"{entry.experiment} {entry.row['id']}" for entry in entries if entry.contradicts]
        if contradicting:
            print(f"error: against what was expected: {', '.join(contradicting)}", file=sys.stderr)
            return _CONTRADICTED
    return code
