"""Class labels of conditional networks: checked on the host, dropped at random in training."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxgen.typing import ArrayLike, PRNGKey, Scalar


def drop_labels(key: PRNGKey, labels: Int[Array, "..."], rate: Scalar, null_label: int) -> Int[Array, "..."]:
    """Replace each label by the null class with probability `rate`, independently (Ho & Salimans 2022, algorithm 1).

    Args:
        key: typed key, consumed.
        labels: classes, of any shape.
        rate: probability in [0, 1]; may be traced.
        null_label: the label that stands for "no class".

    Returns:
        Labels of the same shape and dtype.

    >>> drop_labels(jax.random.key(0), jnp.arange(3), 1.0, 10).tolist()
    [10, 10, 10]
    """
    dropped = jax.random.bernoulli(key, rate, labels.shape)
    return jnp.where(dropped, jnp.asarray(null_label, labels.dtype), labels)


def check_labels(labels: ArrayLike | int, num_classes: int) -> None:
    """Refuse labels outside [0, num_classes] on the host, where `num_classes` itself is the null class.

    Raises:
        ValueError: if a label is not an integer, is negative or is too large. Inside a compiled program it would
            silently pick another row of the class table.
    """
    values = np.asarray(labels)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"labels must be integers, got dtype {values.dtype}")
    wrong = values[(values < 0) | (values > num_classes)]
    if wrong.size:
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, or be {num_classes} for no class, got {wrong.flat[0]}"
        )
