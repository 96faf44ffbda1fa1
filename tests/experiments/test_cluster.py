import contextlib
import json
import socket
import threading

import pytest

from experiments import cluster
from experiments.cluster import Coordinates, Place

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


def without(environ, *names):
    return {name: value for name, value in environ.items() if name not in names}


@pytest.mark.parametrize(
    ("environ", "starter"),
    [
        ({}, None),
        (SLURM, "Slurm"),
        ({**SLURM, "SLURM_NTASKS": "1"}, None),
        (without(SLURM, "SLURM_PROCID"), None),
        (without(SLURM, "SLURM_STEP_NODELIST"), None),  # a batch script, outside of srun
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "many"}, None),
        ({**SLURM, "OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),  # jax asks it first
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, "the TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}, "the TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "the TPU pod"),
        ({"MEGASCALE_NUM_SLICES": "1"}, None),
        ({**KUBERNETES, "TPU_WORKER_HOSTNAMES": "a,b"}, "the TPU pod"),
        (KUBERNETES, "Kubernetes"),
        (without(KUBERNETES, "JOB_COMPLETION_INDEX"), None),
        (without(KUBERNETES, "KUBERNETES_SERVICE_HOST"), None),
        ({**SLURM, cluster.SWITCH: "off"}, None),
        ({**SLURM, cluster.SWITCH: "on"}, "Slurm"),
        ({cluster.SWITCH: "ON"}, "JAXGEN_DISTRIBUTED=on"),
        ({cluster.SWITCH: ""}, None),
    ],
)
def test_what_started_a_process_as_one_of_several_is_read_from_the_environment(environ, starter):
    assert cluster.detected(environ) == starter


def test_a_switch_that_is_neither_on_nor_off_is_refused():
    with pytest.raises(ValueError, match=r"^JAXGEN_DISTRIBUTED takes on or off, got 'no'$"):
        cluster.detected({cluster.SWITCH: "no"})


def test_jax_reads_the_variables_that_are_looked_for(monkeypatch):
    from jax._src.clusters import GkeTpuCluster, OmpiCluster, SlurmCluster

    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert SlurmCluster.is_env_present()
    assert (SlurmCluster.get_process_count(), SlurmCluster.get_process_id()) == (2, 1)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert OmpiCluster.get_process_count() == 4
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert GkeTpuCluster._get_worker_list_in_slice() == ["a", "b"]
    monkeypatch.setenv("TPU_PROCESS_ADDRESSES", "c:1,d:1,e:1")
    assert len(GkeTpuCluster._get_worker_list_in_slice()) == 3


BOTH = ("--num-processes", "2", "--process-id", "1")


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--coordinator", "a:1"], "belong together; add --num-processes and --process-id, or drop the others"),
        (BOTH, "--coordinator, --num-processes, --process-id belong together; add --coordinator, or drop the others"),
        (
            ["--coordinator", "a", *BOTH],
            "--coordinator takes HOST:PORT with a port from 1 to 65535, as in 10.0.0.1:1234",
        ),
        (["--coordinator", ":123", *BOTH], "got ':123'"),
        (["--coordinator", "a:0", *BOTH], "got 'a:0'"),
        (["--coordinator", "a:65536", *BOTH], "got 'a:65536'"),
        (["--coordinator", "a:٣", *BOTH], "got 'a:٣'"),
        (["--coordinator", "a:1", "--num-processes", "0", "--process-id", "0"], "must be at least 1, got 0"),
        (
            ["--coordinator", "a:1", "--num-processes", "4", "--process-id", "4"],
            "--process-id must lie between 0 and 3, one less than --num-processes; got 4",
        ),
        (["--coordinator", "a:1", "--num-processes", "4", "--process-id", "-1"], "got -1"),
        (["--coordinator", "a:1", "--num-processes", "x", "--process-id", "1"], "--num-processes takes INT, got 'x'"),
        (["--initialization-timeout", "0"], "--initialization-timeout must lie between 1 and 86400 seconds, got 0"),
    ],
)
def test_coordinates_that_no_process_has_exit_2_with_one_sentence(command, folder, argv, error):
    code, out, err = command("closed-form", *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert error in err
    assert list(folder.iterdir()) == []


def test_a_port_that_is_taken_is_refused_by_name(command):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = command("closed-form", "--coordinator", address, "--num-processes", 2, "--process-id", 0)
    assert code == 2
    assert err.startswith(f"error: --coordinator {address}: process 0 cannot listen on port ")
    assert "(Address already in use); name a free one" in err


def test_where_jax_does_not_find_the_others_the_sentence_says_how_to_name_them(command, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")  # Open MPI 5 sets no address that jax reads
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    code, _, err = command("closed-form")
    assert (code, err.count("\n")) == (2, 1)
    # What jax says depends on whether it has been used in this process before.
    assert "jax did not join the other processes of Open MPI (" in err
    assert "); name them" in err
    assert "or keep the process by itself with JAXGEN_DISTRIBUTED=off" in err


def test_a_process_by_itself_joins_and_asks_nobody(monkeypatch):
    monkeypatch.setattr(cluster.os, "environ", {})
    place = cluster.join(Coordinates())
    assert (place, place.first) == (Place(0, 1), True)
    assert cluster.together(place, lambda: 7) == 7
    assert cluster.exchange(place, "text") == ["text"]
    assert cluster.leave(place, 1) == 1
    seen = []
    cluster.in_turn(place, lambda: seen.append(1))
    assert seen == [1]


class Together:
    """Runs a function in a thread for each of several places, whose exchange is a barrier between the threads."""

    def __init__(self, count, monkeypatch):
        self.count, self.texts = count, [""] * count
        self.barrier = threading.Barrier(count, timeout=30)
        monkeypatch.setattr(cluster, "exchange", self.exchange)

    def exchange(self, place, text):
        self.texts[place.index] = text
        self.barrier.wait()
        found = list(self.texts)
        self.barrier.wait()
        return found

    def run(self, act):
        results = [None] * self.count

        def one(index):
            try:
                results[index] = act(Place(index, self.count))
            except Exception as error:
                results[index] = error

        threads = [threading.Thread(target=one, args=(index,)) for index in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.mark.parametrize(("kind", "other"), [(ValueError, ValueError), (KeyError, RuntimeError)])
def test_what_fails_on_one_process_fails_on_all(monkeypatch, kind, other):
    def act(place):
        def fail():
            if place.index == 1:
                raise kind("halt")
            return place.index

        return cluster.together(place, fail)

    found = Together(3, monkeypatch).run(act)
    assert [type(error) for error in found] == [other, kind, other]
    assert (
        str(found[0])
        == str(found[2])
        == f"process 1: {'' if kind is ValueError else 'KeyError: '}" + ("halt" if kind is ValueError else "'halt'")
    )
    assert Together(3, monkeypatch).run(lambda place: cluster.together(place, lambda: place.index)) == [0, 1, 2]


def test_the_first_process_goes_before_the_others_and_its_failure_spares_them_the_turn(monkeypatch):
    order = []
    Together(3, monkeypatch).run(lambda place: cluster.in_turn(place, lambda: order.append(place.index)))
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]

    turns = []

    def act(place):
        def turn():
            turns.append(place.index)
            raise ValueError("full is not empty")

        cluster.in_turn(place, turn)

    assert [str(error) for error in Together(2, monkeypatch).run(act)] == [
        "full is not empty",
        "process 0: full is not empty",
    ]
    assert turns == [0]


# Two processes of this machine.

BODY = """
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from experiments.devices import mesh_of

    mesh = mesh_of(run, processes=True)
    numbers = jax.make_array_from_callback(
        (4,), NamedSharding(mesh, PartitionSpec("data")), lambda where: np.arange(4.0)[where]
    )
    total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))(numbers)
    with run.progress(1, "adding") as progress:
        run.metrics(1, total=total, devices=jax.device_count())
        progress.update(1)
    run.note(f"{jax.process_count()} processes")
    run.arrays(total=total)
    run.record("Z1", [Cell("sum over six", values=[float(total) / 6], error=0.0)], seconds=0.0)
    """
CLAIM = 'Claim("Z1", "one is one", source="arithmetic", rule="exact", reference=1.0, test="deterministic")'
TWO = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}


def free_port():
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def both(spawn, *argv, second=()):
    """Run the command in two processes that join each other; returns exit code, output and errors of each."""
    address = f"127.0.0.1:{free_port()}"
    joined = ("--coordinator", address, "--num-processes", 2, "--initialization-timeout", 60)
    running = [
        spawn(*argv, *joined, "--process-id", process, *(second if process else ()), **TWO) for process in range(2)
    ]
    told = [process.communicate(timeout=60) for process in running]
    return [(process.returncode, *texts) for process, texts in zip(running, told, strict=True)]


def test_two_processes_run_as_one_and_the_first_writes(spawn, folder, package):
    package("adding", BODY, claims=f"({CLAIM},)")
    first, second = both(spawn, "adding", "--preset", "ci", "--fully-sharded", "--strict")
    assert (first[0], second[0]) == (0, 0), (first, second)
    (run,) = (folder / "runs" / "adding").iterdir()
    assert f"{run.relative_to(folder)}/report.html" in first[1]
    assert "adding: 1/1" in first[1]
    assert "adding" not in second[1]
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "total": 6.0, "devices": 4.0}
    ]
    assert json.loads((run / "environment.json").read_text())["devices"] == {"cpu": 4}
    assert json.loads((run / "config.json").read_text())["fully_sharded"] is True
    assert [row["verdict"] for row in json.loads((run / "claims.json").read_text())] == ["holds"]
    assert "2 processes" in (run / "report.html").read_text()
    assert not (run / ".lock").exists()


def test_processes_of_different_settings_are_refused_before_anything_is_written(spawn, folder, package):
    package("adding", BODY, claims=f"({CLAIM},)")
    first, second = both(spawn, "adding", second=("--seed", "3"))
    sentence = "every process takes the settings of process 0, but seed is 0 in the run and 3 here"
    assert (first[0], second[0]) == (2, 2)
    assert f"error: process 1: {sentence}\n" in first[2]
    assert f"error: {sentence}\n" in second[2]
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("process", "error"),
    [
        (0, "not all of the 2 processes came to the coordinator {} within 1 s"),
        (1, "the coordinator {} did not answer within 1 s; see that all processes run and that the port is open"),
    ],
)
def test_a_process_that_finds_no_other_exits_2_with_the_address(spawn, folder, process, error):
    address = f"127.0.0.1:{free_port()}"
    joined = ("--coordinator", address, "--num-processes", 2, "--process-id", process, "--initialization-timeout", 1)
    alone = spawn("closed-form", "--preset", "ci", *joined, **TWO)
    _, err = alone.communicate(timeout=60)
    assert alone.returncode == 2
    assert err.startswith(f"error: {error.format(address)}")
    assert err.count("\n") == 1
    assert list(folder.iterdir()) == []
