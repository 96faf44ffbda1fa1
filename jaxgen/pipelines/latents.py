"""Latents of a variational autoencoder, drawn from a stored posterior and scaled as a denoising network wants them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.typing import PRNGKey


@dataclasses.dataclass(frozen=True)
class LatentScaling:
    """Which mean and standard deviation each channel of a latent has, and which it is given; the mean becomes 0.

    The defaults are those of `stabilityai/sd-vae-ft-mse` over ImageNet, for pixels that the encoder saw in [0, 1]
    (Karras et al. 2024, in the code released with the paper). Hashable, so that it can be a static argument.
    """

    raw_mean: tuple[float, ...] = (5.81, 3.25, 0.12, -2.15)
    """Mean of each channel as the autoencoder writes it."""
    raw_std: tuple[float, ...] = (4.17, 4.62, 3.71, 3.28)
    """Standard deviation of each channel as the autoencoder writes it."""
    final_std: float = 0.5
    """Standard deviation of each channel as the network sees it: the sigma_data of its preconditioning."""

    def __post_init__(self) -> None:
        """Refuse what cannot scale."""
        if not self.raw_mean or len(self.raw_mean) != len(self.raw_std):
            raise ValueError(
                "raw_mean and raw_std must hold one number for each of 1 or more channels, "
                f"got {len(self.raw_mean)} and {len(self.raw_std)}"
            )
        for number in self.raw_mean:
            if not math.isfinite(number):
                raise ValueError(f"raw_mean must be finite, got {number}")
        for name, number in (*(("raw_std", number) for number in self.raw_std), ("final_std", self.final_std)):
            if not 0 < number < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {number}")


def draw_latent(
    key: PRNGKey, posterior: Float[Array, "height width double"], scaling: LatentScaling
) -> Float[Array, "height width channels"]:
    """Draw a latent z = mean + std * noise from its posterior, and return (z - raw_mean) * final_std / raw_std.

    With a key of each step's own, training sees another draw each time it meets an image (Karras et al. 2024, as in
    the code released with the paper).

    Args:
        key: typed key, consumed.
        posterior: the means of all channels, then their standard deviations, in any floating dtype.
        scaling: of as many channels.

    Returns:
        The latent, float32, of half as many channels.

    Raises:
        ValueError: if the channels of the posterior are not twice those of the scaling.

    >>> posterior = jnp.concatenate([jnp.full((1, 1, 2), 3.0), jnp.zeros((1, 1, 2))], axis=-1)
    >>> draw_latent(jax.random.key(0), posterior, LatentScaling((1.0, 5.0), (4.0, 4.0))).tolist()
    [[[0.25, -0.25]]]
    """
    channels = posterior.shape[-1]
    if channels % 2:
        raise ValueError(
            f"a posterior must hold a mean and a standard deviation of each channel, got the odd number of {channels}"
        )
    _check_channels(channels // 2, scaling)
    mean, std = jnp.split(posterior.astype(jnp.float32), 2, axis=-1)
    latent = mean + std * jax.random.normal(key, mean.shape, jnp.float32)
    raw_mean, factor = _constants(scaling, latent.ndim)
    return (latent - raw_mean) * factor


def raw_latent(latent: Float[Array, "*batch channels"], scaling: LatentScaling) -> Float[Array, "*batch channels"]:
    """Scale a latent back to what the decoder of the autoencoder reads: latent * raw_std / final_std + raw_mean.

    Args:
        latent: one or more, channels last, in any floating dtype.
        scaling: of as many channels.

    Returns:
        The same latents, float32.

    Raises:
        ValueError: if the latent and the scaling have different channels.
    """
    _check_channels(latent.shape[-1], scaling)
    raw_mean, factor = _constants(scaling, latent.ndim)
    return latent.astype(jnp.float32) / factor + raw_mean


def _check_channels(channels: int, scaling: LatentScaling) -> None:
    if channels != len(scaling.raw_mean):
        raise ValueError(
            f"the latent has {channels} channels, but the scaling {len(scaling.raw_mean)}: "
            "give raw_mean and raw_std a number for each"
        )


def _constants(scaling: LatentScaling, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the means and the factors of the channels, of the rank that they are combined with."""
    shape = (1,) * (rank - 1) + (-1,)
    raw_mean, raw_std = (np.reshape(each, shape).astype(np.float32) for each in (scaling.raw_mean, scaling.raw_std))
    return raw_mean, np.float32(scaling.final_std) / raw_std
