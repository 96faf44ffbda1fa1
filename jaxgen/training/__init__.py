"""Training: the state, the loop, averages, checkpoints, meshes and batches; it knows no loss and no network."""

from jaxgen.training.checkpoints import (
    CheckpointDamagedError,
    CheckpointError,
    Checkpoints,
    Restored,
    fingerprint,
    read_config,
    restore_params,
)
from jaxgen.training.data import Batches, InMemory, in_memory, permuted_index
from jaxgen.training.ema import Ema, EmaState, ema
from jaxgen.training.loop import Metrics, TrainingDivergedError, Update, fit, run_span
from jaxgen.training.mesh import (
    RULES,
    batch_sharding,
    check_batch,
    make_mesh,
    parse_mesh,
    replicate,
    shard_batch,
    state_shardings,
)
from jaxgen.training.state import SEED_AXES, TrainState, create

__all__ = [
    "RULES",
    "SEED_AXES",
    "Batches",
    "CheckpointDamagedError",
    "CheckpointError",
    "Checkpoints",
    "Ema",
    "EmaState",
    "InMemory",
    "Metrics",
    "Restored",
    "TrainState",
    "TrainingDivergedError",
    "Update",
    "batch_sharding",
    "check_batch",
    "create",
    "ema",
    "fingerprint",
    "fit",
    "in_memory",
    "make_mesh",
    "parse_mesh",
    "permuted_index",
    "read_config",
    "replicate",
    "restore_params",
    "run_span",
    "shard_batch",
    "state_shardings",
]
