"""Check the whole project as a fresh machine would: environment, lint, types, tests, experiments, notebooks.

The environment is made anew outside the checkout with the README's own test command, and removed at the end. The first
stage that fails ends the run with its exit code.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
# What an experiment at ci and a notebook may take on 2 free cores. A busy machine is slower, so a stage that takes
# longer is warned of, and only one that takes more than SLACK times as long fails.
EXPERIMENT_SECONDS, NOTEBOOK_SECONDS = 75, 45
SLACK = 2
# The experiments that have a `ci` preset, found as the command finds them.
LIST_EXPERIMENTS = """
from experiments import packages
for name in packages.names():
    if "ci" in getattr(packages.load(name), "PRESETS", {}):
        print(name)
"""


class Stage(NamedTuple):
    """One command: it fails by its exit code, or by taking far more than `limit` seconds."""

    name: str
    command: str
    limit: float | None = None


class StageFailedError(Exception):
    """A stage failed; `code` is the exit code of the run."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


def main(argv: list[str]) -> int:
    """Run the stages that `argv` asks for and return the exit code."""
    parser = argparse.ArgumentParser(prog=".ci/run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--only",
        metavar="ROOM",
        help="lint and types, and of the rest what belongs to a folder of tests/ or an experiment",
    )
    parser.add_argument("--venv", metavar="DIR", type=Path, help="use this environment instead of making one")
    parser.add_argument(
        "--experiment-limit",
        metavar="SECONDS",
        type=float,
        default=EXPERIMENT_SECONDS,
        help=f"longest time of an experiment at ci (default: {EXPERIMENT_SECONDS}, on 2 free cores)",
    )
    options = parser.parse_args(argv)
    work = Path(tempfile.mkdtemp(prefix="jaxgen-ci-"))
    times: list[tuple[str, float]] = []
    try:
        if options.only is not None and options.only not in (known := rooms(ROOT)):
            print(f"error: there is no room {options.only!r}; the rooms are {', '.join(known)}", file=sys.stderr)
            return 2
        install, test = readme_commands((ROOT / "README.md").read_text(encoding="utf-8"))
        environment = options.venv or work / "venv"
        before = changes(ROOT)
        if options.venv is None:
            make = f'{sys.executable} -m venv "{environment}"'
            perform([Stage("install", f"{make} && {activated(environment)} && {install}")], work, times)
        perform(stages(ROOT, environment, work, test, options.only, options.experiment_limit), work, times)
        if left := changes(ROOT) - before:
            raise StageFailedError(f"the run changed the checkout: {', '.join(sorted(left))}")
    except StageFailedError as failure:
        print(f"\nFAILED: {failure}", file=sys.stderr)
        return failure.code
    finally:
        table(times)
        shutil.rmtree(work, ignore_errors=True)
    print("passed")
    return 0


def readme_commands(text: str) -> tuple[str, str]:
    """Read how the README installs and tests: the halves of its line `INSTALL && TEST` with the `test` extra."""
    blocks = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if ".[test]" in line]
    if len(lines) != 1 or lines[0].count("&&") != 1:
        raise StageFailedError(
            "README.md needs one command line `pip install -e '.[test]' && pytest` in a block of shell"
        )
    install, test = lines[0].split("&&")
    return install.strip(), test.strip()


def rooms(root: Path) -> list[str]:
    """List what `--only` takes: folders of tests/, and experiments that have tests or a notebook of their own."""
    found = {path.name for path in (root / "tests").iterdir() if path.is_dir() and any(path.rglob("test_*.py"))}
    for package in (root / "experiments").iterdir():
        if (package / "__init__.py").is_file():
            found.add(package.name.replace("_", "-"))
    return sorted(found)


def stages(
    root: Path, environment: Path, work: Path, test: str, only: str | None, experiment_limit: float
) -> list[Stage]:
    """List the stages after the installation."""
    inside = activated(environment)
    found = [
        Stage("lint", f"{inside} && ruff check . && ruff format --check ."),
        Stage("layers", f"{inside} && lint-imports"),
        Stage("types", f'{inside} && pyright --pythonpath "{environment}/bin/python"'),
    ]
    if targets := test_targets(root, only):
        found.append(Stage("tests", f"{inside} && {test} --durations=10 {' '.join(targets)}".rstrip()))
    chosen = [name for name in experiments(environment) if only in (None, name)]
    for name in chosen:
        command = f'python -m experiments {name} --preset ci --out "{work}/runs/{name}/ci"'
        found.append(Stage(f"experiment {name}", f"{inside} && {command}", experiment_limit))
    if chosen:
        found.append(Stage("ledger", f'{inside} && python -m experiments ledger "{work}/runs" --check'))
    for notebook in sorted((root / "notebooks").glob("*.ipynb")):
        if only in (None, notebook.stem.replace("_", "-")):
            found += notebook_stages(notebook, inside, work)
    return found


def notebook_stages(notebook: Path, inside: str, work: Path) -> list[Stage]:
    """Compare a notebook with its script, then run a copy of it at its smallest size."""
    copy = work / "notebooks" / notebook.name
    # nbmake takes its own options only: those of the project are for tests.
    run = f'pytest --nbmake --nbmake-kernel=python3 -o addopts= -p no:cacheprovider -c /dev/null "{copy}"'
    # Without the metadata: only one of the two files carries some of it, and the version of jupytext among it.
    plain = "jupytext --quiet --to py:percent --opt notebook_metadata_filter=-all --output -"
    return [
        Stage(
            f"notebook {notebook.stem}: pair",
            f'{inside} && diff <({plain} "{notebook}") <({plain} "{notebook.with_suffix(".py")}") && '
            f'test -n "$({plain} "{notebook}")" && echo "the notebook and its script agree"',
        ),
        Stage(
            f"notebook {notebook.stem}",
            f'{inside} && mkdir -p "{copy.parent}" && cp "{notebook}" "{copy}" && cd "{copy.parent}" && '
            f"JAXGEN_NOTEBOOK_SIZE=ci {run}",
            NOTEBOOK_SECONDS,
        ),
    ]


def test_targets(root: Path, only: str | None) -> list[str] | None:
    """Say which paths the tests get: [""] for all, None where a room has none."""
    if only is None:
        return [""]
    name = only.replace("-", "_")
    candidates = (root / "tests" / name, root / "tests" / "experiments" / name, root / "jaxgen" / name)
    return [str(path.relative_to(root)) for path in candidates if path.is_dir()] or None


def experiments(environment: Path) -> list[str]:
    """Ask the installed command which experiments there are."""
    listed = subprocess.run(
        [str(environment / "bin" / "python"), "-c", LIST_EXPERIMENTS], capture_output=True, text=True, cwd=ROOT
    )
    if listed.returncode:
        raise StageFailedError(f"the experiments cannot be listed: {listed.stderr.strip()}")
    return listed.stdout.split()


def activated(environment: Path) -> str:
    """Return a shell prefix that puts an environment first."""
    return f'export PATH="{environment}/bin:$PATH" VIRTUAL_ENV="{environment}"'


def perform(todo: list[Stage], work: Path, times: list[tuple[str, float]]) -> None:
    """Run stages in order, adding the time of each to `times`; raises `StageFailedError` at the first that fails."""
    variables = {
        **os.environ,
        "XDG_CACHE_HOME": str(work / "cache"),  # compiled programs of this run alone
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
    }
    for stage in todo:
        print(f"\n=== {stage.name}", flush=True)
        began = time.monotonic()
        code = subprocess.run(["bash", "-o", "pipefail", "-c", stage.command], cwd=ROOT, env=variables).returncode
        seconds = time.monotonic() - began
        times.append((stage.name, seconds))
        print(f"--- {stage.name}: {seconds:.1f} s", flush=True)
        if code:
            raise StageFailedError(f"{stage.name} ended with exit code {code}", code)
        if stage.limit is not None and seconds > stage.limit:
            late = f"{stage.name} took {seconds:.0f} s, at most {stage.limit:.0f} s are allowed on 2 free cores"
            if seconds > SLACK * stage.limit:
                raise StageFailedError(late)
            print(f"warning: {late}", file=sys.stderr, flush=True)


def changes(root: Path) -> set[str]:
    """List what git sees as changed or new, empty where the checkout is no git repository."""
    status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True)
    return set(status.stdout.splitlines()) if status.returncode == 0 else set()


def table(times: list[tuple[str, float]]) -> None:
    """Print the time of each stage and of all."""
    if not times:
        return
    width = max(len(name) for name, _ in times)
    print("\nstage".ljust(width + 1), "     time")
    for name, seconds in [*times, ("total", sum(seconds for _, seconds in times))]:
        print(f"{name:<{width}} {int(seconds // 60):4d}:{seconds % 60:04.1f}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
