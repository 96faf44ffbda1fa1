import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ci():
    spec = importlib.util.spec_from_file_location("ci_check", ROOT / ".ci" / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_says_how_to_install_and_test(ci):
    install, test = ci.readme_commands((ROOT / "README.md").read_text())
    assert (install, test) == ("pip install -e '.[test]'", "pytest")


@pytest.mark.parametrize("text", ["", "```sh\npytest\n```\n", "pip install -e '.[test]' && pytest\n"])
def test_a_readme_without_the_command_is_refused(ci, text):
    with pytest.raises(ci.StageFailedError, match=r"README\.md needs one command line"):
        ci.readme_commands(text)


def test_stages_come_in_order_and_cover_everything(ci, monkeypatch, tmp_path):
    monkeypatch.setattr(ci, "experiments", lambda environment: ["digits", "other"])
    names = [stage.name for stage in ci.stages(ROOT, Path("venv"), tmp_path, "pytest", None, 75)]
    notebooks = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    expected = ["lint", "layers", "types", "tests", "experiment digits", "experiment other", "ledger"]
    for name in notebooks:
        expected += [f"notebook {name}: pair", f"notebook {name}"]
    assert names == expected


@pytest.mark.parametrize(
    ("only", "expected", "targets"),
    [
        ("statistics", ["lint", "layers", "types", "tests"], "tests/statistics jaxgen/statistics"),
        (
            "digits",
            [
                *("lint", "layers", "types", "tests", "experiment digits", "ledger"),
                *("notebook digits: pair", "notebook digits"),
            ],
            "tests/experiments/digits",
        ),
    ],
)
def test_one_room_gets_its_own_tests(ci, monkeypatch, tmp_path, only, expected, targets):
    monkeypatch.setattr(ci, "experiments", lambda environment: ["digits", "other"])
    stages = ci.stages(ROOT, Path("venv"), tmp_path, "pytest", only, 75)
    assert [stage.name for stage in stages] == expected
    assert stages[3].command.endswith(f"pytest --durations=10 {targets}")


def test_an_unknown_room_is_refused_before_anything_is_installed(ci, capsys):
    assert ci.main(["--only", "kitchen"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: there is no room 'kitchen'; the rooms are ")
    assert "statistics" in err
    assert "digits" in err


@pytest.mark.parametrize("started", [[], ["bash"], ["sh"]], ids=["itself", "bash", "sh"])
def test_the_run_starts_from_any_folder_by_itself_or_through_a_shell(tmp_path, started):
    command = [*started, str(ROOT / ".ci" / "run"), "--only", "kitchen"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: there is no room 'kitchen'")


def test_the_first_failing_stage_ends_the_run_with_its_code(ci, tmp_path):
    times, commands = [], [("first", "true"), ("second", "exit 3"), ("third", "true")]
    with pytest.raises(ci.StageFailedError, match="second ended with exit code 3") as failure:
        ci.perform([ci.Stage(*stage) for stage in commands], tmp_path, times)
    assert failure.value.code == 3
    assert [name for name, _ in times] == ["first", "second"]


def test_a_stage_that_takes_too_long_is_named_and_one_that_takes_far_too_long_fails(ci, tmp_path, capsys):
    ci.perform([ci.Stage("late", "sleep 1", 0.9)], tmp_path, [])
    assert "warning: late took 1 s, at most 1 s are allowed" in capsys.readouterr().err
    with pytest.raises(ci.StageFailedError, match="slow took 0 s, at most 0 s are allowed"):
        ci.perform([ci.Stage("slow", "sleep 0.1", 0.01)], tmp_path, [])


def test_a_failing_command_in_front_of_a_pipe_is_seen(ci, tmp_path):
    with pytest.raises(ci.StageFailedError):
        ci.perform([ci.Stage("pipe", "false | true")], tmp_path, [])


def test_a_notebook_that_differs_from_its_script_is_seen(ci, tmp_path):
    for ending in ("ipynb", "py"):
        shutil.copy(ROOT / "notebooks" / f"digits.{ending}", tmp_path)
    pair, _ = ci.notebook_stages(tmp_path / "digits.ipynb", ci.activated(Path(sys.prefix)), tmp_path)
    ci.perform([pair], tmp_path, [])
    script = tmp_path / "digits.py"
    script.write_text(script.read_text() + "\n# %%\n1 + 1\n")
    with pytest.raises(ci.StageFailedError, match="notebook digits: pair ended with exit code 1"):
        ci.perform([pair], tmp_path, [])


def test_files_left_in_the_checkout_are_seen(ci, tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    before = ci.changes(tmp_path)
    (tmp_path / "left").write_text("")
    assert ci.changes(tmp_path) - before == {"?? left"}
