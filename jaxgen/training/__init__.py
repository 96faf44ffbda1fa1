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
from jaxgen.training.finite_gradients import NonfiniteState, zero_nonfinite, zeroing_nonfinite
from jaxgen.training.fitting import CheckpointDamagedError, CheckpointError
from jaxgen.training.gradients import accumulated_gradient
from jaxgen.training.image_decoding import DamagedImageError
from jaxgen.training.image_folder import ImageFolder, image_folder
from jaxgen.training.image_records import ImageRecords, image_records
from jaxgen.training.images import open_images
from jaxgen.training.latent_folder import LatentFolder, latent_folder
from jaxgen.training.learning_rates import inverse_root_rate, of_images, stepped_inverse_root_rate
from jaxgen.training.loop import TrainingDivergedError, fit
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
from jaxgen.training.pace import Timing
from jaxgen.training.posthoc_ema import combine, posthoc_coefficients, profile_error, profile_product
from jaxgen.training.power_ema import PowerEmaState, exponent_to_width, power_ema, width_to_exponent
from jaxgen.training.scan import Share
from jaxgen.training.snapshots import Snapshots, check_reach, reconstruct, snapshot_times
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
    "LatentFolder",
    "MetricWriter",
    "Metrics",
    "NonfiniteState",
    "PowerEmaState",
    "Restored",
    "Share",
    "Snapshots",
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
    "check_reach",
    "combine",
    "count_flops",
    "create",
    "ema",
    "exponent_to_width",
    "fingerprint",
    "fit",
    "gathered",
    "image_folder",
    "image_records",
    "in_memory",
    "inverse_root_rate",
    "latent_folder",
    "local_mesh",
    "make_mesh",
    "of_images",
    "open_images",
    "parse_mesh",
    "peak_flops",
    "permuted_index",
    "place",
    "posthoc_coefficients",
    "power_ema",
    "profile_error",
    "profile_product",
    "read_config",
    "reconstruct",
    "replicate",
    "restore_params",
    "run_span",
    "shard_batch",
    "snapshot_times",
    "state_shardings",
    "stepped_inverse_root_rate",
    "streamed",
    "utilisation",
    "width_to_exponent",
    "zero_nonfinite",
    "zeroing_nonfinite",
]
