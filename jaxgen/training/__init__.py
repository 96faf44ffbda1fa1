"""Training: the state, the loop, averages, checkpoints, meshes and batches; it knows no loss and no network."""

from jaxgen.training.checkpoints import (
    Checkpoints,
    Restored,
    best_step,
    read_config,
    restore_params,
)
from jaxgen.training.data import Batches, InMemory, in_memory, permuted_index
from jaxgen.training.ema import Ema, EmaState, ema
from jaxgen.training.fitting import CheckpointDamagedError, CheckpointError
from jaxgen.training.gradients import accumulated_gradient
from jaxgen.training.image_decoding import DamagedImageError
from jaxgen.training.image_folder import ImageFolder, image_folder
from jaxgen.training.image_records import ImageRecords, image_records
from jaxgen.training.images import open_images
from jaxgen.training.loop import Timing, TrainingDivergedError, fit
from jaxgen.training.mesh import (
    RULES,
    batch_sharding,
    check_batch,
    gathered,
    local_mesh,
    make_mesh,
    parse_mesh,
    place,
    replicate,
    shard_batch,
    state_shardings,
)
from jaxgen.training.metrics import Asynchronous, MetricWriter, TensorBoard
from jaxgen.training.scan import Share
from jaxgen.training.span import Metrics, Update, run_span
from jaxgen.training.state import SEED_AXES, TrainState, create
from jaxgen.training.stream import Examples, Streamed, streamed
from jaxgen.training.tree_paths import fingerprint
from jaxgen.training.utilisation import count_flops, peak_flops, utilisation

__all__ = [
    "RULES",
    "SEED_AXES",
    "Asynchronous",
    "Batches",
    "CheckpointDamagedError",
    "CheckpointError",
    "Checkpoints",
    "DamagedImageError",
    "Ema",
    "EmaState",
    "Examples",
    "ImageFolder",
    "ImageRecords",
    "InMemory",
    "MetricWriter",
    "Metrics",
    "Restored",
    "Share",
    "Streamed",
    "TensorBoard",
    "Timing",
    "TrainState",
    "TrainingDivergedError",
    "Update",
    "accumulated_gradient",
    "batch_sharding",
    "best_step",
    "check_batch",
    "count_flops",
    "create",
    "ema",
    "fingerprint",
    "fit",
    "gathered",
    "image_folder",
    "image_records",
    "in_memory",
    "local_mesh",
    "make_mesh",
    "open_images",
    "parse_mesh",
    "peak_flops",
    "permuted_index",
    "place",
    "read_config",
    "replicate",
    "restore_params",
    "run_span",
    "shard_batch",
    "state_shardings",
    "streamed",
    "utilisation",
]
