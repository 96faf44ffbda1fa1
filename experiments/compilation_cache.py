"""Keep compiled programs in the user's cache folder, where nobody else can plant one."""

import hashlib
import os
import stat
import sys
from pathlib import Path

from experiments.environment import cpu_features


def enable() -> Path | None:
    """Switch jax's persistent compilation cache on and return its folder, None where it stays off.

    `JAXGEN_COMPILATION_CACHE=off` keeps it off; so does a folder that is unsafe or cannot be made, with a note on
    standard error: what it holds is executable code.
    """
    if os.environ.get("JAXGEN_COMPILATION_CACHE", "on").lower() == "off":
        return None
    import jax

    # jax keys an entry by the program and its own version, not by the processor's instruction sets.
    key = f"{jax.__version__}-{hashlib.sha256(cpu_features().encode()).hexdigest()[:12]}"
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    cache = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    try:
        folder = _private(_private(cache / "jaxgen") / key)
    except (OSError, ValueError) as error:
        print(f"note: compiling without the persistent cache: {error}", file=sys.stderr)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return folder


def _private(folder: Path) -> Path:
    """Make `folder` with mode 0700, or check that an existing one is this user's and writable by nobody else."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{folder} is not a folder")
    if found.st_uid != os.geteuid():
        raise ValueError(f"{folder} belongs to another user")
    if found.st_mode & 0o022:
        raise ValueError(f"{folder} is writable by other users; chmod 700 it")
    folder.chmod(0o700)
    return folder
