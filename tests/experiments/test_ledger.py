"""The ledger over synthetic runs whose rows are real verdicts: joining, checking, keeping, rendering, freshness."""

import json
import subprocess
from pathlib import Path

import pytest

from experiments import claims, cli, ledger
from experiments.claims import Cell, Claim
from experiments.ledger import check, freshness, keep, runs

HOLDS = (0.52, 0.49, 0.55, 0.50, 0.54)
REFUTED = (0.62, 0.59, 0.65, 0.60, 0.64)


def claim(name, **options):
    margin = {"reference": 0.5, "margin": 0.05, "margin_reason": "1 %"}
    return Claim(name, f"Claim {name} <b>is</b> a | b", source="eq. 1", rule="equal", **margin, **options)


def row(name, values=HOLDS, preset="ci", **options):
    if values is None:
        return claims.not_run(claim(name, **options), "needs weights", preset=preset)
    return claims.judge(claim(name, **options), [Cell("a", values=values)], seconds=1.0, preset=preset)


def write_run(path, rows, *, preset="ci", started="2026-01-01T00:00:00Z", experiment="toy", part=None, **environment):
    path.mkdir(parents=True)
    (path / "claims.json").write_text(json.dumps(rows, indent=1))
    content = {"experiment": experiment, "preset": preset, "started": started, "finished": True, "seed": 0}
    content |= {"commit": None, "dirty": False, **environment}
    (path / "environment.json").write_text(json.dumps(content))
    (path / "config.json").write_text(json.dumps({"part": part}))
    return path


@pytest.fixture
def root(tmp_path):
    """A checkout with one experiment that uses one room of two."""
    root = tmp_path / "checkout"
    for path, text in {
        "experiments/__init__.py": "",
        "experiments/toy/__init__.py": "from jaxgen.pipelines import train\n",
        "jaxgen/__init__.py": "",
        "jaxgen/pipelines/__init__.py": "import jaxgen.statistics.verdicts\n",
        "jaxgen/statistics/__init__.py": "from jaxgen import typing\n",
        "jaxgen/typing.py": "",
        "jaxgen/video/__init__.py": "",
        "README.md": "# jaxgen\n<!-- ledger -->\nformer table\n<!-- /ledger -->\nend\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def git(root, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", "-C", root, *identity, *arguments], check=True, capture_output=True, text=True).stdout


def commit_all(root):
    git(root, "add", "-A")
    git(root, "commit", "-qm", "state")
    return git(root, "rev-parse", "HEAD").strip()


def chosen(folder, root):
    found, _ = runs.finished_runs(folder)
    papers = runs.join(found + runs.kept_runs(root), root)
    return {entry.row["id"]: entry for paper in papers for entry in paper.entries}


def test_an_empty_ledger_says_how_to_fill_it(root, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    assert ledger.main([str(tmp_path / "runs"), "--check"], root=root) == 0
    assert "start with: python -m experiments digits" in capsys.readouterr().out


def test_the_default_folder_may_be_missing_but_a_named_one_may_not(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ledger.main([], root=root) == 0
    assert ledger.main(["elsewhere"], root=root) == 2
    assert capsys.readouterr().err == "error: elsewhere is not a folder; name one that holds run directories\n"


def test_the_newest_finished_run_of_the_largest_preset_counts(root, tmp_path):
    folder = tmp_path / "runs"
    write_run(folder / "toy/1", [row("A1")], started="2026-01-01T00:00:00Z")
    write_run(folder / "toy/2", [row("A1", REFUTED, "default")], preset="default", started="2026-01-02T00:00:00Z")
    newest = write_run(
        folder / "toy/3", [row("A1", HOLDS, "default")], preset="default", started="2026-01-04T00:00:00Z"
    )
    write_run(folder / "toy/4", [row("A1", REFUTED)], started="2026-01-05T00:00:00Z")
    unfinished = write_run(
        folder / "toy/5",
        [row("A1", REFUTED, "default")],
        preset="default",
        started="2026-01-06T00:00:00Z",
        finished=None,
    )
    assert chosen(folder, root)["A1"].run.path == newest
    assert runs.finished_runs(folder)[1] == [unfinished]


def test_started_times_are_compared_as_times(root, tmp_path):
    write_run(tmp_path / "runs/toy/1", [row("A1")], started="2026-01-01T23:30:00-02:00")
    write_run(tmp_path / "runs/toy/2", [row("A1", REFUTED)], started="2026-01-02T00:30:00Z")
    assert chosen(tmp_path / "runs", root)["A1"].row["verdict"] == "holds"


def test_parts_of_a_preset_are_joined_over_the_newest_whole_run(root, tmp_path):
    folder = tmp_path / "runs"
    gpu = {"preset": "gpu"}
    before = [row("A1", REFUTED, "gpu"), row("A2", None, "gpu"), row("A3", REFUTED, "gpu")]
    write_run(folder / "toy/0", before, part="first", started="2026-01-01T00:00:00Z", **gpu)
    whole = [row("A1", HOLDS, "gpu"), row("A2", None, "gpu"), row("A3", None, "gpu")]
    write_run(folder / "toy/1", whole, started="2026-01-02T00:00:00Z", **gpu)
    part = [row("A1", None, "gpu"), row("A2", HOLDS, "gpu"), row("A3", None, "gpu")]
    write_run(folder / "toy/2", part, part="second", started="2026-01-03T00:00:00Z", **gpu)
    write_run(folder / "toy/3", [row("A3", HOLDS, "default")], preset="default")
    found = chosen(folder, root)
    assert {name: (entry.judged["verdict"], entry.run.path.name) for name, entry in found.items()} == {
        "A1": ("holds", "1"),
        "A2": ("holds", "2"),
        "A3": ("holds", "3"),  # no run of gpu that counts has measured it
    }


def test_a_run_that_measured_nothing_hides_none_that_did(root, tmp_path):
    folder = tmp_path / "runs"
    write_run(folder / "toy/0", [row("A1", REFUTED), row("A2", REFUTED)], started="2026-01-01T00:00:00Z")
    write_run(folder / "toy/1", [row("A1"), row("A2", None)], started="2026-01-02T00:00:00Z")
    write_run(folder / "toy/2", [row("A1", None), row("A2")], part="second", started="2026-01-03T00:00:00Z")
    drawn = [row("A1", None), row("A2", None), row("A3", None)]
    write_run(folder / "toy/3", drawn, started="2026-01-04T00:00:00Z")
    found = chosen(folder, root)
    assert {name: (entry.judged["verdict"], entry.run.path.name) for name, entry in found.items()} == {
        "A1": ("holds", "1"),
        "A2": ("holds", "2"),
        "A3": ("not run", "3"),
    }


def test_of_runs_that_all_measured_nothing_the_newest_counts(root, tmp_path):
    for number in (1, 2):
        write_run(tmp_path / f"runs/toy/{number}", [row("A1", None)], started=f"2026-01-0{number}T00:00:00Z")
    assert chosen(tmp_path / "runs", root)["A1"].run.path.name == "2"


def test_each_paper_is_corrected_by_itself(root, tmp_path):
    weak = (0.525, 0.49, 0.55, 0.50, 0.545)  # p = .04
    write_run(tmp_path / "runs/toy/1", [row("A1", weak), row("A2", None)])
    write_run(tmp_path / "runs/other/1", [row("B1", weak)], experiment="other")
    found = chosen(tmp_path / "runs", root)
    assert found["A1"].judged["verdict"] == "holds"
    assert (found["A1"].row["verdict"], found["B1"].row["verdict"]) == ("inconclusive", "holds")


def test_the_table_counts_each_paper_and_shows_every_row(root, tmp_path, capsys):
    rows = [row("A1"), row("A2", REFUTED), row("A3", None, primary=False), row("A4", [0.5, 0.5], primary=False)]
    write_run(tmp_path / "runs/toy/1", rows)
    write_run(tmp_path / "runs/toy/2", rows, finished=None)
    assert ledger.main([str(tmp_path / "runs")], root=root) == 0
    shown = capsys.readouterr().out
    counts = next(line for line in shown.splitlines() if line.startswith("│ toy ") and " ci " in line)
    assert counts.split()[3:11:2] == ["1", "1", "1", "1"]
    assert all(f"toy {name}" in shown for name in ("A1", "A2", "A3", "A4"))
    assert "the seeds have no effect" in shown
    assert "refuted (expected: holds)" in " ".join(shown.replace("│", " ").split())
    assert f"left out, not finished: {tmp_path}/runs/toy/2" in shown


def test_check_passes_honest_rows_and_names_tampered_ones(root, tmp_path, capsys):
    honest = [row("A1"), row("A2", REFUTED), row("A3", None)]
    path = write_run(tmp_path / "runs/toy/1", honest)
    assert ledger.main([str(tmp_path / "runs"), "--check"], root=root) == 0
    assert "checked 3 rows from their raw data: none differ" in capsys.readouterr().out
    honest[1]["verdict"] = "holds"
    (path / "claims.json").write_text(json.dumps(honest))
    assert ledger.main([str(tmp_path / "runs"), "--check"], root=root) == 1
    shown = capsys.readouterr().out
    assert f"toy A2 ({path}): the row says 'holds', its data say 'refuted'" in shown
    assert "1 differs" in shown
    assert "toy A1 (" not in shown


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda r: r["cells"][0]["values"].__setitem__(0, 0.9), "the row says 'holds', its data say 'inconclusive'"),
        (lambda r: r.update(measured=0.5), "measured is 0.5, its data say 0.52"),
        (lambda r: r["cells"][0].update(p=1e-9), "cells[0].p is 1e-09, its data say 0.029"),
        (lambda r: r["cells"][0].update(interval=[0.5, 0.53]), "cells[0].interval[0] is 0.5, its data say 0.4956"),
        (lambda r: r["cells"][0].update(margin=0.5), "p is 0.029"),
        (lambda r: r["cells"][0].pop("values"), "cannot be judged again (claim 'A1', cell 'a': the rule"),
        (lambda r: r["cells"][0].update(values={"a": 1}), "cannot be judged again (cell 'a': values must be a row"),
        (lambda r: r.update(cells=[]), "cannot be judged again (claim 'A1' needs at least one cell"),
    ],
)
def test_every_number_of_a_row_is_checked(tamper, message):
    stored = row("A1")
    assert check.differences(stored) == []
    tamper(stored)
    assert any(found.startswith(message) for found in check.differences(stored))


def test_rounding_of_another_machine_is_no_difference():
    stored = row("A1")
    stored["p"] *= 1 + 1e-8
    assert check.differences(stored) == []


def test_a_row_judged_by_another_rule_than_declared_is_named():
    stored = claims.judge(claim("A1", seeds=5), [Cell("a", values=HOLDS)], seconds=1.0, preset="ci")
    declared = Claim("A1", "reworded", source="eq. 1", rule="equal", reference=0.5, margin=0.02, margin_reason="less")
    assert check.departures(stored, claim("A1")) == []
    assert check.departures(stored, declared) == ["judged with margin 0.05, declared with 0.02"]


def test_strict_exits_3_on_a_contradiction_alone(root, tmp_path, capsys):
    write_run(tmp_path / "runs/toy/1", [row("A1"), row("A2", [0.5, 0.5])])
    assert ledger.main([str(tmp_path / "runs"), "--strict"], root=root) == 0
    write_run(tmp_path / "runs/toy/2", [row("A1", REFUTED)], started="2026-02-01T00:00:00Z")
    assert ledger.main([str(tmp_path / "runs"), "--strict"], root=root) == 3
    assert capsys.readouterr().err == "error: against what was expected: toy A1\n"


def test_html_is_one_page_that_loads_nothing_and_runs_nothing(root, tmp_path):
    write_run(tmp_path / "runs/toy/1", [row("A1"), row("A2", None)])
    page = tmp_path / "ledger.html"
    assert ledger.main([str(tmp_path / "runs"), "--html", str(page)], root=root) == 0
    text = page.read_text()
    assert "Claim A1 &lt;b&gt;is&lt;/b&gt; a | b" in text
    assert "needs weights" in text
    assert not any(word in text for word in ("<script", "<link", "src=", "http"))
    assert ledger.main([str(tmp_path / "runs"), "--html", str(tmp_path / "none/x.html")], root=root) == 1


def test_readme_gets_the_table_between_its_markers_and_nothing_else_changes(root, tmp_path):
    write_run(tmp_path / "runs/toy/1", [row("A1"), row("A2", None, primary=False)])
    for _ in range(2):  # a second time changes nothing
        assert ledger.main([str(tmp_path / "runs"), "--readme"], root=root) == 0
        text = (root / "README.md").read_text()
        assert text.startswith("# jaxgen\n<!-- ledger -->\n| paper | holds | refuted |")
        assert text.endswith("</details>\n<!-- /ledger -->\nend\n")
        assert "| toy | 1 | 0 | 0 | 1 | ci |" in text
        assert "| toy A1 | Claim A1 &lt;b>is&lt;/b> a \\| b | 0.5 | 0.52 ± 0.0114 | holds |" in text
        assert "former table" not in text


@pytest.mark.parametrize("text", ["no markers", "<!-- /ledger -->\n<!-- ledger -->", "<!-- ledger -->\n" * 2])
def test_a_readme_without_its_markers_is_left_alone(text, root, tmp_path, capsys):
    write_run(tmp_path / "runs/toy/1", [row("A1")])
    (root / "README.md").write_text(text)
    assert ledger.main([str(tmp_path / "runs"), "--readme"], root=root) == 2
    assert (root / "README.md").read_text() == text
    assert "needs the markers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("claims.json", "[\n{]", "claims.json:2: malformed JSON"),
        ("claims.json", '[\n\n{"id": "A1"}]', "claims.json:3: row 'A1' lacks the key"),
        ("environment.json", "{", "environment.json:1: malformed JSON"),
        ("environment.json", "[]", "environment.json:1: must hold a JSON object"),
        ("environment.json", '{"finished": true, "experiment": "../../x"}', "environment.json:1: experiment must be"),
        ("environment.json", '{"finished": true, "experiment": "toy", "preset": "x"}', "preset must be one of"),
        (
            "environment.json",
            '{"finished": true, "experiment": "toy", "preset": "ci", "started": 5}',
            "started must be an ISO 8601 time, got 5",
        ),
    ],
)
def test_a_malformed_file_is_named_with_its_line(file, text, message, root, tmp_path, capsys):
    path = write_run(tmp_path / "runs/toy/1", [row("A1")])
    (path / file).write_text(text)
    assert ledger.main([str(tmp_path / "runs")], root=root) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_keep_copies_rows_environment_and_small_figures_alone(root, tmp_path):
    path = write_run(tmp_path / "runs/toy/1", [row("A1")])
    (path / "figures").mkdir()
    (path / "figures/small.png").write_bytes(b"png")
    (path / "figures/large.png").write_bytes(bytes(200_000))
    (path / "figures/notes.txt").write_text("x")
    (path / "figures/link.png").symlink_to(root / "README.md")
    assert ledger.main([str(tmp_path / "runs"), "--keep", str(path)], root=root) == 0
    kept = root / "experiments/toy/results/ci"
    assert sorted(str(p.relative_to(kept)) for p in kept.rglob("*") if p.is_file()) == [
        *("claims.json", "environment.json", "figures/small.png"),
    ]
    assert json.loads((kept / "claims.json").read_text()) == [row("A1")]
    assert [p.name for p in kept.parent.iterdir()] == ["ci"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert chosen(empty, root)["A1"].run.kept


def test_keep_replaces_a_whole_run_and_lays_a_part_over_it(root, tmp_path):
    first = write_run(tmp_path / "a", [row("A1"), row("A2", None)], commit="a" * 40)
    second = write_run(tmp_path / "b", [row("A1", None), row("A2", REFUTED)], commit="b" * 40, part="second")
    third = write_run(tmp_path / "c", [row("A1", REFUTED)], commit="c" * 40)
    kept = root / "experiments/toy/results/ci/claims.json"
    keep.keep(first, root)
    keep.keep(second, root)
    found = {r["id"]: (r["verdict"], r["commit"][0]) for r in json.loads(kept.read_text())}
    assert found == {"A1": ("holds", "a"), "A2": ("refuted", "b")}
    assert runs.kept_runs(root)[0].part is None
    keep.keep(third, root)
    assert [r["verdict"] for r in json.loads(kept.read_text())] == ["refuted"]


def test_a_kept_part_does_not_hide_an_older_part_that_is_not_kept(root, tmp_path):
    folder = tmp_path / "runs"
    write_run(folder / "toy/1", [row("A1"), row("A2", None)], part="first", started="2026-01-01T00:00:00Z")
    later = [row("A1", None), row("A2", REFUTED)]
    keep.keep(write_run(tmp_path / "b", later, part="second", started="2026-01-02T00:00:00Z"), root)
    found = chosen(folder, root)
    assert {name: entry.judged["verdict"] for name, entry in found.items()} == {"A1": "holds", "A2": "refuted"}


def test_keep_refuses_an_unfinished_run_and_an_unknown_experiment(root, tmp_path, capsys):
    unfinished = write_run(tmp_path / "a", [row("A1")], finished=None)
    unknown = write_run(tmp_path / "b", [row("A1")], experiment="unknown")
    for path, message in ((unfinished, "is not the directory of a finished run"), (unknown, "there is no experiment")):
        assert ledger.main([str(tmp_path), "--keep", str(path)], root=root) == 2
        assert message in capsys.readouterr().err
    assert not (root / "experiments/toy/results").exists()


def test_nothing_is_kept_where_the_folder_of_runs_is_missing(root, tmp_path, capsys):
    path = write_run(tmp_path / "a", [row("A1")])
    assert ledger.main([str(tmp_path / "missing"), "--keep", str(path)], root=root) == 2
    assert "missing is not a folder" in capsys.readouterr().err
    assert not (root / "experiments/toy/results").exists()


def test_a_failed_keep_leaves_the_older_results(root, tmp_path, monkeypatch):
    keep.keep(write_run(tmp_path / "a", [row("A1")]), root)
    newer = write_run(tmp_path / "b", [row("A1", REFUTED)])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keep, "_copy_figures", full)
    assert ledger.main([str(tmp_path), "--keep", str(newer)], root=root) == 1
    results = root / "experiments/toy/results"
    assert json.loads((results / "ci/claims.json").read_text())[0]["verdict"] == "holds"
    assert [p.name for p in results.iterdir()] == ["ci"]


def test_kept_results_in_the_wrong_folder_are_refused(root, tmp_path):
    write_run(root / "experiments/toy/results/gpu", [row("A1")], preset="ci")
    with pytest.raises(ValueError, match="kept results must be those of a finished run of this experiment and preset"):
        runs.kept_runs(root)


def test_a_package_uses_the_rooms_that_it_imports_directly_or_through_others(root):
    used = freshness.used_packages(root / "experiments/toy", root)
    assert used == {root / "jaxgen" / name for name in ("pipelines", "statistics", "typing.py")}


def test_a_package_uses_the_experiments_that_it_imports_and_their_rooms(root):
    (root / "experiments/second").mkdir()
    (root / "experiments/second/__init__.py").write_text("from experiments.toy import CLAIMS\n")
    used = freshness.used_packages(root / "experiments/second", root)
    assert used == {root / "experiments/toy"} | freshness.used_packages(root / "experiments/toy", root)


@pytest.mark.parametrize(
    ("path", "state"),
    [
        ("experiments/toy/__init__.py", "stale"),
        ("experiments/toy/new.py", "stale"),
        ("jaxgen/statistics/__init__.py", "stale"),
        ("jaxgen/typing.py", "stale"),
        ("jaxgen/video/__init__.py", "current"),
        ("experiments/toy/results/ci/claims.json", "current"),
        ("README.md", "current"),
    ],
)
def test_a_row_is_stale_once_a_file_that_it_depends_on_differs(path, state, root):
    git(root, "init", "-q")
    commit = commit_all(root)

    def now():
        return freshness.freshness(commit, False, package="toy", root=root)

    assert now() == "current"
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("import math\n")
    assert now() == state
    commit_all(root)
    assert now() == state


def test_freshness_is_unknown_without_git_without_the_commit_and_beside_changes(root):
    arguments = {"package": "toy", "root": root}
    assert freshness.freshness("a" * 40, False, **arguments) == "unknown"
    git(root, "init", "-q")
    commit = commit_all(root)
    assert freshness.freshness("a" * 40, False, **arguments) == "unknown"
    assert freshness.freshness("--output=x", False, **arguments) == "unknown"
    assert freshness.freshness(None, False, **arguments) == "unknown"
    assert freshness.freshness(commit, True, **arguments) == "unknown"
    assert freshness.freshness(commit, False, **arguments) == "current"


def test_a_stale_kept_row_is_marked(root, tmp_path, capsys):
    git(root, "init", "-q")
    commit = commit_all(root)
    keep.keep(write_run(tmp_path / "runs/toy/1", [row("A1")], commit=commit), root)
    (tmp_path / "empty").mkdir()
    ledger.main([str(tmp_path / "empty")], root=root)
    assert "ci, kept" in capsys.readouterr().out
    (root / "jaxgen/statistics/__init__.py").write_text("changed = 1\n")
    ledger.main([str(tmp_path / "empty")], root=root)
    assert "ci, kept, stale" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--chek"], "error: unknown option '--chek'; the nearest is '--check'; --help shows every option\n"),
        (["--html"], "error: cannot read the arguments '--html'; --help shows every option\n"),
        (["a", "b"], "error: cannot read the arguments 'a b'; --help shows every option\n"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(argv, message, capsys):
    assert ledger.main(argv) == 2
    assert capsys.readouterr().err == message


def test_the_command_reaches_the_ledger_and_its_help(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ledger", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{option}" in shown for option in ("html FILE", "check", "readme", "keep RUN", "strict"))
    assert Path(ledger.ROOT / "experiments/ledger/ledger.html").is_file()
