"""The ledger's command line."""

import contextlib
import dataclasses
import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from experiments.packages import nearest

_DESCRIPTION = """Show every claim of every experiment, judged from the newest finished run of the largest preset (ci < default < gpu < paper) and from the results kept in git. Holm's correction runs over the primary random rows of each paper. A row is stale when its experiment, or a room of jaxgen that it uses, changed since the commit it was measured at."""  # noqa: E501 - tyro wraps it to the terminal


@dataclasses.dataclass(frozen=True)
class Options:
    """What the ledger takes."""

    runs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="[RUNS]")] = Path("runs")
    """Folder of run directories, which lie at most two levels below it."""
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """Write one self-contained page to FILE."""
    check: tyro.conf.FlagCreatePairsOff[bool] = False
    """Judge every row again from its raw data; exit 1 and name the rows that differ."""
    readme: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write the table between the ledger markers of README.md."""
    keep: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="(optional)")] = None
    """First copy the results of the finished run RUN into its experiment's package, to be kept in git."""
    strict: tyro.conf.FlagCreatePairsOff[bool] = False
    """Exit 3 when a row is decided otherwise than its claim expects."""


def parse(argv: Sequence[str]) -> Options:
    """Parse the arguments after `ledger`; prints the help and exits 0 where it is asked for.

    Raises:
        ValueError: One sentence on what is wrong.
    """
    names = [f"--{field.name}" for field in dataclasses.fields(Options)[1:]] + ["--help"]
    for word in argv:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in names:
            raise ValueError(f"unknown option {option!r}{nearest(option, names)}; --help shows every option")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(Options, prog="python -m experiments ledger", description=_DESCRIPTION, args=list(argv))
    except SystemExit as exit:
        if not exit.code:
            raise
        raise ValueError(f"cannot read the arguments {shlex.join(argv)!r}; --help shows every option") from None
