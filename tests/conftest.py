"""One configuration for every test: strict jax, eight host devices, a compilation cache that the workers share."""

import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "agg"
# The controller makes the folder before it starts the workers, which inherit its environment. The cache holds
# executable code and its key lacks the processor's features, so it lives no longer than this run.
_OWNS_CACHE = "JAXGEN_TEST_CACHE" not in os.environ
if _OWNS_CACHE:
    os.environ["JAXGEN_TEST_CACHE"] = tempfile.mkdtemp(prefix="jaxgen-test-cache-")

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("jaxgen", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")
jax.config.update("jax_compilation_cache_dir", os.environ["JAXGEN_TEST_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_unconfigure(config):
    """Remove the cache of this run, from the process that made it."""
    if _OWNS_CACHE and not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["JAXGEN_TEST_CACHE"], ignore_errors=True)
