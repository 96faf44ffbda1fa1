import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import cli, files

CLAIM = 'Claim("Z1", "one is one", source="arithmetic", rule="exact", reference=1.0, test="deterministic")'
RECORD = 'run.record("Z1", [Cell("one", values=[{value}], error=0.0)], seconds=0.0)'


def rows(folder):
    return {row["id"]: row for row in json.loads((folder / "claims.json").read_text())}


def wait_for(path, seconds=30.0):
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text().count("\n") >= 2):
        assert time.monotonic() < end, f"{path} did not grow"
        time.sleep(0.02)


def cpu_seconds(process):
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


# The list and the help.


@pytest.mark.parametrize("argv", [(), ("closed-form", "--help"), ("closed_form", "--help")])
def test_list_and_help_answer_within_a_second_of_cpu_time_and_import_no_jax(spawn, argv):
    process = spawn(*argv)
    spent = cpu_seconds(process)
    out = process.stdout.read()
    assert (process.returncode, process.stderr.read()) == (0, "")
    assert "heavy: []" in out
    assert "Random walks with Gaussian steps" in out
    assert spent < 1.0


def test_the_modules_own_command_lists_within_a_second_of_cpu_time(tmp_path):
    repository = Path(cli.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments"], env=environment, stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert cpu_seconds(process) < 1.0
    assert process.returncode == 0
    assert process.stdout.read().startswith(b"python -m experiments NAME")
    process.stdout.close()


def test_help_shows_every_field_and_option_with_default_and_meaning(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = command("closed_form", "--help")
    words = " ".join(out.replace("│", " ").split())
    assert code == 0
    for text in (
        "--step-size FLOAT Standard deviation of one step, in units of length. (default: 0.5)",
        "--lengths [INT [INT ...]] Numbers of steps, at least two different ones. (default: 4 16 64)",
        "--seed INT Seed of every random number of the run, 0 to 2^32 - 1. (default: 0)",
        "ci 1 s on one CPU core",
        "default 2 s on one CPU core",
        *(
            "--preset",
            "--out DIR",
            "--resume DIR",
            "--from RUN",
            "--part",
            "--mesh data=N,model=M",
            "--fully-sharded",
            "--coordinator HOST:PORT",
            "--num-processes INT",
            "--process-id INT",
            "--initialization-timeout SECONDS How long to wait until all processes are there, in seconds.",
            "--tensorboard",
            "--strict",
            "--traceback",
        ),
    ):
        assert text in words


def test_help_of_a_preset_shows_its_values(command):
    assert "(default: 1024)" in command("closed-form", "--preset", "ci", "--help").out


def test_claims_of_every_package_are_read_without_jax():
    code = """
import importlib, pkgutil, sys, experiments
experiments.__path__.append(sys.argv[1])
count = 0
for module in pkgutil.iter_modules(experiments.__path__):
    if module.ispkg:
        package = importlib.import_module("experiments." + module.name)
        if hasattr(package, "main"):
            continue
        ids = [claim.id for claim in package.CLAIMS]
        assert len(set(ids)) == len(ids), module.name
        assert set(package.PRESETS) <= {"ci", "default", "gpu", "paper"}, module.name
        count += len(ids)
assert not {"jax", "numpy", "jaxgen"} & set(sys.modules), sorted(sys.modules)
print(count)
"""
    packages = Path(__file__).parent / "packages"
    done = subprocess.run([sys.executable, "-c", code, packages], capture_output=True, text=True)
    assert done.stderr == ""
    assert int(done.stdout) >= 5


# What is refused: exit 2, one sentence, nothing written.


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["closed-fom"], "there is no experiment 'closed-fom'; the nearest is 'closed-form'"),
        (["closed-form", "--wlks", "3"], "closed-form has no option --wlks; the nearest is '--walks'"),
        (["closed-form", "--sed", "3"], "closed-form has no option --sed; the nearest is '--seed'"),
        (["closed-form", "foo"], "closed-form takes options that begin with --, got 'foo'"),
        (["closed-form", "--walks", "abc"], "--walks takes INT, got 'abc'"),
        (["closed-form", "--lengths", "3", "x"], "--lengths takes [INT [INT ...]], got ['3', 'x']"),
        (["closed-form", "--walks"], "Missing value for argument '--walks'"),
        (["closed-form", "--preset", "cii"], "closed-form has the presets ci, default; got 'cii'; the nearest is 'ci'"),
        (["closed-form", "--seed", "-1"], "--seed must lie between 0 and 4294967295, got -1"),
        (["closed-form", "--seed", "x"], "--seed takes INT, got 'x'"),
        (["closed-form", "--mesh", "data=0"], "--mesh takes axes out of data, model, each once with a positive count"),
        (["closed-form", "--mesh", "dta=2"], "got 'dta=2'"),
        (["closed-form", "--mesh", "data=2,data=2"], "got 'data=2,data=2'"),
        (["closed-form", "--mesh", "data=3,model=3"], "--mesh data=3,model=3 takes 9 devices and there are 8"),
        (["closed-form", "--part", "a"], "closed-form has no parts; drop --part"),
        (["closed-form", "--pause", "nan"], "--pause must be finite, got nan"),
        (["closed-form", "--step-size", "-2"], "--step-size must be positive, got -2.0"),
        (["closed-form", "--resume", "nowhere"], "nowhere is no run: it holds no config.json"),
        (["closed-form", "--from", "nowhere"], "nowhere is no run: it holds no config.json"),
        (["closed-form", "--out", "a", "--resume", "b"], "--resume goes on in b itself; drop --out"),
        (["closed-form", "--from", "a", "--resume", "b"], "--resume goes on in b itself; drop --from"),
        (["closed-form", "--out", "/proc/none"], "/proc/none cannot be written"),
        (["closed-form", "--out", "/dev/null/a"], "/dev/null/a cannot be written"),
        (["closed-form", "--preset"], "Missing value for argument '--preset'"),
        (["closed-form", "--seed", "4294967296"], "--seed must lie between 0 and 4294967295, got 4294967296"),
        (["closed-form", "--step-size", "inf"], "--step-size must be finite, got inf"),
        (["closed-form", "--mesh", "data=64"], "--mesh data=64 takes 64 devices and there are 8"),
    ],
)
def test_bad_arguments_exit_2_with_one_sentence_and_write_nothing(command, folder, argv, error):
    code, out, err = command(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert error in err
    assert list(folder.iterdir()) == []


def test_out_must_be_empty_and_a_folder(command, folder):
    (folder / "file").write_text("kept")
    (folder / "full").mkdir()
    (folder / "full" / "file").write_text("kept")
    for out, error in (
        ("full", "full is not empty"),
        ("file", "cannot be written"),
        ("file/below", "cannot be written"),
    ):
        code, _, err = command("closed-form", "--preset", "ci", "--out", out)
        assert code == 2
        assert error in err
        assert err.count("\n") == 1
    assert sorted(path.name for path in folder.rglob("*")) == ["file", "file", "full"]


def test_a_check_that_fails_comes_before_anything_is_written_or_measured(command, folder, package):
    more = """
        def check(config, run):
            assert (run.preset, run.seed, run.resumed, run.path.exists()) == ("ci", 5, False, False)
            raise ValueError(f"--steps must be 7, got {config.steps}")
        """
    package("checked", "raise AssertionError", more=more)
    code, _, err = command("checked", "--preset", "ci", "--seed", 5)
    assert (code, err) == (2, "error: --steps must be 7, got 1\n")
    assert not (folder / "runs").exists()


def test_a_package_with_its_own_main_takes_the_rest_of_the_line(command, package):
    package("own", "pass", more="def main(argv):\n    print(argv)\n    return 7\n")
    assert command("own", "a", "--strict")[:2] == (7, "['a', '--strict']\n")


# A run.


def test_a_run_measures_the_closed_form_and_writes_its_folder(command, folder):
    code, out, err = command("closed-form", "--preset", "ci", "--seed", "3", "--strict")
    assert (code, err) == (0, "")
    (run,) = (folder / "runs" / "closed-form").iterdir()
    assert run.name.endswith("Z-3")
    assert {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} == {
        *("config.json", "environment.json", "metrics.jsonl", "claims.json", "notes.json", "arrays.npz", "report.html"),
        *("figures/spread.png", "figures/spread.svg"),
    }
    found = rows(run)
    assert list(found) == ["W1", "W2", "W3", "W4", "W5"]
    assert [found[name]["verdict"] for name in found] == ["holds", "holds", "holds", "refuted", "not run"]
    assert found["W5"]["reason"] == "needs 16 times the walks of ci, 10 s"
    # Sums of independent steps of variance 1/4: the mean square after n of them is n / 4.
    with np.load(run / "arrays.npz", allow_pickle=False) as arrays:
        # 16,384 walks: a relative standard error of sqrt(2 / 16384) = 1.1 %.
        np.testing.assert_allclose(arrays["second_moment"].mean(axis=0), arrays["lengths"] / 4, rtol=0.045)
    assert str(run.relative_to(folder) / "report.html") in out
    assert out.startswith("walks: 1/2, ")
    assert "walks: 2/2, " in out
    settings = json.loads((run / "config.json").read_text())
    assert (settings["experiment"], settings["preset"], settings["seed"]) == ("closed-form", "ci", 3)
    assert settings["config"]["walks"] == 1024
    environment = json.loads((run / "environment.json").read_text())
    assert set(environment) == {
        *("commit", "dirty", "versions", "devices", "machine"),
        *("experiment", "preset", "seed", "started", "finished"),
    }
    assert environment["finished"] >= environment["started"]


def test_fields_override_the_preset_and_the_seed_decides_the_numbers(command, folder):
    small = ("--preset", "ci", "--walks", "16", "--lengths", "2", "8", "--step_size", "2")
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert command("closed-form", *small, "--out", out, "--seed", seed).code == 0
    a, b, c = (dict(np.load(folder / name / "arrays.npz", allow_pickle=False)) for name in "abc")
    assert a["lengths"].tolist() == [2, 8]
    assert np.array_equal(a["second_moment"], b["second_moment"])
    assert not np.isclose(a["second_moment"], c["second_moment"]).any()
    assert json.loads((folder / "a" / "config.json").read_text())["config"] == {
        **{"lengths": [2, 8], "step_size": 2.0, "walks": 16, "blocks": 2, "seeds": 8, "pause": 0.0}
    }


@pytest.mark.parametrize(("value", "strict", "code"), [(1.0, True, 0), (2.0, True, 3), (2.0, False, 0)])
def test_strict_exits_3_when_a_verdict_contradicts_what_is_expected(command, package, value, strict, code):
    package("strictly", RECORD.format(value=value), claims=f"({CLAIM},)")
    found, _, err = command("strictly", *["--strict"] * strict)
    assert found == code
    assert err == ("error: the verdict contradicts what is expected of Z1\n" if code else "")


def test_an_exception_exits_1_with_one_sentence_and_a_traceback_only_when_asked(command, folder, package):
    package("failing", 'run.note("got here")\nraise ZeroDivisionError("by zero\\nmore")')
    code, _, err = command("failing", "--out", "a")
    assert (code, err) == (1, "error: ZeroDivisionError: by zero\n")
    assert json.loads((folder / "a" / "environment.json").read_text())["finished"] is None
    page = (folder / "a" / "report.html").read_text()
    assert "Failed: ZeroDivisionError: by zero" in page
    assert "got here" in page
    code, _, err = command("failing", "--traceback")
    assert code == 1
    assert "Traceback (most recent call last)" in err
    assert err.endswith("error: ZeroDivisionError: by zero\n")


def test_a_value_error_while_running_exits_1(command, package):
    package("wrong", 'raise ValueError("the loss of step 3 is nan")')
    assert command("wrong")[::2] == (1, "error: the loss of step 3 is nan\n")


def test_a_package_that_cannot_be_imported_is_one_sentence(command, package):
    package("broken", "pass", more="import no_such_module")
    code, _, err = command("broken")
    assert (code, err) == (1, "error: ModuleNotFoundError: No module named 'no_such_module'\n")


def test_a_claim_that_nothing_was_said_about_fails_the_run(command, folder, package):
    other = CLAIM.replace("Z1", "Z2").replace("reference", 'not_run={"ci": "takes 9 minutes"}, reference')
    package("forgetful", "pass", claims=f"({CLAIM}, {other})")
    code, _, err = command("forgetful", "--preset", "ci", "--out", "a")
    assert code == 1
    assert "the run left the claims Z1 open" in err
    assert "Z1, Z2 open" in command("forgetful").err


def test_a_part_runs_by_itself_and_says_what_it_left_to_the_others(command, folder, package):
    claims = f"({CLAIM}, {CLAIM.replace('Z1', 'Z2')})"
    package("parted", RECORD.format(value=1.0), claims=claims, more='PARTS = {"first": "Z1", "second": "Z2"}')
    assert (
        "parted has the parts first, second; got 'frst'; the nearest is 'first'"
        in command("parted", "--part", "frst").err
    )
    assert command("parted", "--part", "first", "--out", "a").code == 0
    assert {name: row["verdict"] for name, row in rows(folder / "a").items()} == {"Z1": "holds", "Z2": "not run"}
    assert rows(folder / "a")["Z2"]["reason"] == "not in the part 'first'"
    assert "second" in command("parted", "--help").out


# Runs that build on runs.


def test_a_run_from_another_starts_from_its_settings(command, folder, package):
    package("sampled", 'print("from", run.source, run.preset, config.steps)')
    assert command("sampled", "--preset", "ci", "--steps", "9", "--out", "a").code == 0
    assert command("sampled", "--from", "a", "--out", "b").out.startswith("from a ci 9\n")
    assert command("sampled", "--from", "a", "--steps", "4", "--out", "c").out.startswith("from a ci 4\n")
    assert command("sampled", "--from", "a", "--preset", "default", "--out", "d").out.startswith("from a default 3\n")
    assert json.loads((folder / "b" / "config.json").read_text())["from"] == "a"
    assert "a is a run of 'sampled', not of 'closed-form'" in command("closed-form", "--from", "a").err
    (folder / "a" / "config.json").write_text((folder / "a" / "config.json").read_text().replace("steps", "stops"))
    assert "a was made by another version of this experiment" in command("sampled", "--from", "a").err


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("config.json", "", "config.json:1: malformed JSON"),
        ("config.json", '{"experiment": "closed-form"', "config.json:1: malformed JSON"),
        ("config.json", "[]", "config.json does not hold the settings of a run"),
        ("environment.json", "{}", "environment.json does not hold the environment of a run"),
        ("environment.json", '{"finished": NaN}', "environment.json:1: malformed JSON"),
    ],
)
@pytest.mark.parametrize("option", ["--from", "--resume"])
def test_a_run_whose_settings_are_damaged_is_refused_and_left_alone(command, folder, option, name, text, error):
    assert command("closed-form", "--preset", "ci", "--walks", "16", "--out", "a").code == 0
    (folder / "a" / name).write_text(text)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, out, err = command("closed-form", option, "a")
    assert (code, out) == (2, "")
    assert error in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_an_unfinished_run_is_not_sampled_from_and_a_finished_one_not_resumed(command, package):
    package("halting", "if config.steps == 5: raise RuntimeError('halt')")
    assert command("halting", "--steps", "5", "--out", "a").code == 1
    assert command("halting", "--out", "b").code == 0
    assert command("halting", "--from", "a").err == "error: a has not finished; go on with it first: --resume a\n"
    code, _, err = command("halting", "--resume", "b")
    assert code == 2
    assert "b finished at " in err
    assert "--from b" in err


def test_a_resumed_run_keeps_its_settings_and_names_every_field_that_differs(command, folder, package):
    package("resumable", "if not run.resumed: raise RuntimeError('halt')\nprint(run.preset, run.seed, config.steps)")
    assert command("resumable", "--preset", "ci", "--seed", "4", "--steps", "9", "--out", "a").code == 1
    before = {path: path.read_bytes() for path in (folder / "a").rglob("*") if path.is_file()}
    code, _, err = command("resumable", "--resume", "a", "--steps", "8", "--seed", "5", "--preset", "default")
    assert code == 2
    assert "a cannot go on with other settings: " in err
    for text in (
        'preset is "ci" in the run and "default" here',
        "seed is 4 in the run and 5 here",
        "steps is 9 in the run and 8",
    ):
        assert text in err
    assert {path: path.read_bytes() for path in (folder / "a").rglob("*") if path.is_file()} == before
    assert command("resumable", "--resume", "a", "--steps", "9").out.startswith("ci 4 9\n")


def test_a_run_from_before_full_sharding_is_resumed_and_may_be_sharded_otherwise(command, folder, package):
    package("older", "if not run.resumed: raise RuntimeError('halt')\nprint(run.fully_sharded, run.tensorboard)")
    assert command("older", "--out", "a").code == 1
    path = folder / "a" / "config.json"
    stored = json.loads(path.read_text())
    assert stored.pop("fully_sharded") is False
    path.write_text(json.dumps(stored))
    assert command("older", "--resume", "a", "--fully-sharded", "--tensorboard").out.startswith("True True\n")
    assert json.loads(path.read_text())["fully_sharded"] is True
    stored.pop("from")
    path.write_text(json.dumps(stored))
    assert command("older", "--from", "a", "--out", "b").err == "error: halt\n"  # it was read, and has run


def test_tensorboard_that_is_not_installed_is_told_before_anything_is_written(command, folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "tensorboard" else find(name))
    code, _, err = command("closed-form", "--preset", "ci", "--tensorboard")
    assert (code, err) == (2, "error: writing for TensorBoard needs its package: pip install 'jaxgen[tensorboard]'\n")
    assert list(folder.iterdir()) == []


def test_two_processes_do_not_write_one_folder(command, folder, package):
    package("slow", "raise RuntimeError('halt')")
    assert command("slow", "--out", "a").code == 1
    with files.locked(folder / "a"):
        code, _, err = command("slow", "--resume", "a")
    assert (code, err.count("\n")) == (2, 1)
    assert f"a is being written by process {os.getpid()}" in err
    (folder / "a" / ".lock").write_text("1\n")  # left by a dead process, even if its number lives again
    assert command("slow", "--resume", "a").code == 1


# Signals.


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_resumed_run_ends_as_an_uninterrupted_one(spawn, command, folder, number, code):
    settings = ("--preset", "ci", "--walks", "64", "--blocks", "12")
    process = spawn("closed-form", *settings, "--pause", "0.15", "--out", "a")
    wait_for(folder / "a" / "metrics.jsonl")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err == f"{number.name}: saving; Ctrl-C ends the run without\n"
    assert "saved; go on with --resume a" in out
    assert (folder / "a" / "checkpoints" / "moments.npz").exists()
    assert f"Interrupted by {number.name}" in (folder / "a" / "report.html").read_text()
    assert not (folder / "a" / ".lock").exists()
    assert command("closed-form", "--resume", "a").code == 0
    assert command("closed-form", *settings, "--out", "b").code == 0
    steps = [json.loads(line)["step"] for line in (folder / "a" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))
    assert (folder / "a" / "metrics.jsonl").read_bytes() == (folder / "b" / "metrics.jsonl").read_bytes()
    assert (folder / "a" / "arrays.npz").read_bytes() == (folder / "b" / "arrays.npz").read_bytes()


def test_a_second_sigint_ends_the_run_at_once(spawn, folder, package):
    package("deaf", "import time\nfor step in range(600):\n    run.metrics(step)\n    time.sleep(0.1)")
    process = spawn("deaf", "--out", "a")
    wait_for(folder / "a" / "metrics.jsonl")
    process.send_signal(signal.SIGINT)
    assert "saving" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == -signal.SIGINT


def test_a_killed_run_leaves_a_folder_that_is_resumed(spawn, command, folder):
    process = spawn("closed-form", "--preset", "ci", "--walks", "64", "--blocks", "9", "--pause", "0.15", "--out", "a")
    wait_for(folder / "a" / "metrics.jsonl")
    process.kill()
    process.wait(timeout=5)
    with (folder / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "secon')  # what a cut through a line leaves
    (folder / "a" / ".claims.json.x.part").write_text("[")
    assert command("closed-form", "--resume", "a").code == 0
    steps = [json.loads(line)["step"] for line in (folder / "a" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 10))
    assert not list((folder / "a").glob(".*"))


def test_compiling_and_loading_from_the_cache_leave_standard_error_clean(spawn, folder, package):
    body = """
        import jax
        shuffle = jax.jit(lambda x: jax.numpy.sort(jax.random.permutation(jax.random.key(0), x) @ x).sum())
        print("sum", shuffle(jax.numpy.eye(64)))
        """
    package("compiling", body)
    for _ in range(2):
        process = spawn("compiling", JAXGEN_COMPILATION_CACHE="on", XDG_CACHE_HOME=str(folder / "cache"))
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert "sum 64.0" in out
    (cache,) = (folder / "cache" / "jaxgen").iterdir()
    assert list(cache.iterdir())
    assert cache.stat().st_mode & 0o777 == 0o700
