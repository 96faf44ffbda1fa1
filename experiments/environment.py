"""What a run's numbers depend on besides its settings: code, versions, devices, machine."""

import collections
import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_GIB = 2**30


def describe(experiment: str, preset: str, seed: int) -> dict:
    """Describe this process as `environment.json` holds it, naming no host, user or folder; imports jax."""
    import jax

    commit, dirty = code_version()
    return {
        "experiment": experiment,
        "preset": preset,
        "seed": seed,
        "commit": commit,
        "dirty": dirty,
        "versions": versions(),
        "devices": dict(collections.Counter(device.device_kind for device in jax.devices())),
        "machine": machine(),
        "started": utc_now(),
        "finished": None,
    }


def utc_now() -> str:
    """Say the time in UTC to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def code_version() -> tuple[str | None, bool | None]:
    """Name the git commit that the code is from and whether files differ from it; (None, None) outside a checkout."""
    # An installed package may lie inside a checkout of something else: only one that tracks this file counts.
    if _git("ls-files", "--error-unmatch", "experiments/environment.py") is None:
        return None, None
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--", "jaxgen", "experiments", "pyproject.toml")
    return (commit, bool(status)) if commit else (None, None)


def versions() -> dict[str, str]:
    """List the version of Python, of jaxgen and of each installed distribution that it requires."""
    found = {"python": platform.python_version()}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        requirements = [line for line in importlib.metadata.requires("jaxgen") or () if "extra ==" not in line]
        names = {re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in requirements}
        for name in sorted(names | {"jaxgen", "jaxlib"}):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, str | int | float]:
    """Describe the processor: `cpu` model, `cores` this process may use, `memory_gib` in GiB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cpu": _cpu_line("model name") or platform.machine(), "cores": cores, "memory_gib": round(memory, 1)}


def cpu_features() -> str:
    """Name the processor's model and instruction sets: compiled code runs only where both agree."""
    lines = [_cpu_line(name) for name in ("model name", "flags", "Features")]
    return " ".join([platform.machine(), platform.processor(), *(line for line in lines if line)])


def _cpu_line(name: str) -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    match = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return match and match[1].strip()


def _git(*arguments: str) -> str | None:
    """Return what git prints about this checkout, None where it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", _ROOT, *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
