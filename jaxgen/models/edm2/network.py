"""EDM2: the magnitude-preserving U-Net of Karras et al. (2024), "Analyzing and Improving the Training Dynamics"."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.models.conditioning import example_inputs, leading_shape
from jaxgen.models.edm2.block import EDM2Block
from jaxgen.models.edm2.config import EDM2Config
from jaxgen.models.edm2.layers import MPConv, MPDense, MPFourier, zero_gain
from jaxgen.models.edm2.magnitude import mp_cat, mp_silu, mp_sum
from jaxgen.models.resampling import double, halve
from jaxgen.typing import ArrayLike


class EDM2(nn.Module):
    """Map a noisy image, its noise condition and a label to the raw network output of the image's shape.

    The U-Net of Karras et al. (2024), config G. No layer has a bias, an affine norm or a weight whose magnitude matters
    but for the scalar gains, and every operation keeps the mean square of its input. For 4 levels of 3 blocks:

        level 0   conv - 3 ------------- concatenate with each of 4 - conv, gain 0
        level 1     down - 3 --------- concatenate with each of 4 - up
        level 2       down - 3 ----- concatenate with each of 4 - up
        level 3         down - 3, 2, concatenate with each of 4 - up

    Each block on the way down, the first convolution and the steps of resolution hand a skip to the way up. The last
    layer's gain starts at 0, so that a preconditioned denoiser starts at its skip connection, and so does the gain of
    the conditioning vector in each block. Every operation acts on one sample: `jax.vmap` over samples equals a call
    with leading dimensions.

    Besides "params" there is the collection "buffers" of the random frequencies: draw both by `init_variables`.
    `project_weights` brings the weights back to magnitude 1 before each update; applying the network never does.
    """

    config: EDM2Config

    def setup(self):
        """Declare what the uncertainty is read from; the trunk is declared where it is applied."""
        self.uncertainty_waves = MPFourier(self.config.uncertainty_width)
        self.uncertainty = MPDense(1, ("waves", "uncertainty"))

    def example_inputs(self) -> tuple[Array, ...]:
        """Return the arguments of one call on a single sample: image, noise condition, label."""
        return example_inputs(self.config)

    def log_variance(self, noise_condition: Float[ArrayLike, "*lead"]) -> Float[Array, "*lead"]:
        """Return u, the log of the expected loss that the network learns for each noise level (eqs. 16 and 21).

        Called as `apply(variables, noise_condition, method="log_variance")`.

        Args:
            noise_condition: what the network is told about the noise, of any shape.

        Returns:
            A number for each, float32 at least.
        """
        return self.uncertainty(self.uncertainty_waves(jnp.asarray(noise_condition)))[..., 0]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*lead_and_image"],
        noise_condition: Float[ArrayLike, "..."],
        label: Int[ArrayLike, "..."],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "*lead_and_image"]:
        """Apply the network.

        Args:
            x: images of shape `(*lead, side, side, channels)`, where `lead` may be empty; of mean square about 1.
            noise_condition: what the network is told about the noise, shape `lead`; of order 1.
            label: classes in [0, num_classes], shape `lead`; `num_classes` is the null class.
            deterministic: False turns dropout on, which draws from the "dropout" stream of `rngs`.

        Returns:
            The raw output F, with the shape and dtype of `x`.

        Raises:
            ValueError: if the shapes do not belong together.
        """
        config = self.config
        count = math.prod(leading_shape(config, x, noise_condition, label, None))
        if self.is_initializing():
            self.log_variance(noise_condition)
        embedding = self._embedding(jnp.reshape(noise_condition, count), jnp.reshape(label, count))
        h = x.reshape(count, *config.image_shape)
        # The constant stands in for the bias that no layer has.
        h = jnp.concatenate([h, jnp.ones_like(h[..., :1])], axis=-1)
        h = MPConv(config.level_width(0), 3, ("channels", "width"), config.dtype, name="enter")(h)
        h = self._levels(h, embedding, deterministic)
        # Without a type of its own the last layer promotes to that of the parameters.
        h = MPConv(config.image_shape[-1], 3, ("width", "channels"), name="leave")(h, zero_gain(self, "leave_gain"))
        return h.astype(x.dtype).reshape(x.shape)

    def _embedding(self, noise_condition, label):
        """Mix the noise level and the class into the conditioning vector."""
        config = self.config
        waves = MPFourier(config.level_width(0), name="noise_waves")(noise_condition)
        noise = MPDense(config.embedding, ("waves", "embedding"), name="noise")(waves)
        # The root gives a row that is zero but for one entry the mean square 1; the null class is out of range: 0.
        one_hot = math.sqrt(config.num_classes) * jax.nn.one_hot(label, config.num_classes, dtype=noise.dtype)
        named = MPDense(config.embedding, ("classes", "embedding"), name="label")(one_hot)
        return mp_silu(mp_sum(noise, named, config.label_balance))

    def _levels(self, h, embedding, deterministic):
        """Go down the levels and up again; every output on the way down is a skip of a block on the way up."""
        config, lowest = self.config, len(self.config.multipliers) - 1
        make: Callable[..., EDM2Block] = nn.remat(EDM2Block) if config.remat else EDM2Block
        block = functools.partial(make, config, deterministic=deterministic)
        skips = [h]
        for level in range(lowest + 1):
            if level:
                features = config.level_width(level - 1)
                name = f"encoder_{level}_down"
                skips.append(block(features, attention=False, resample=halve, name=name)(skips[-1], embedding))
            for index in range(config.blocks):
                features, attention = config.level_width(level), config.attends(level)
                name = f"encoder_{level}_{index}"
                skips.append(block(features, attention=attention, name=name)(skips[-1], embedding))
        h, block = skips[-1], functools.partial(block, decoder=True)
        for level in reversed(range(lowest + 1)):
            features = config.level_width(level)
            if level == lowest:
                h = block(features, attention=True, name=f"decoder_{level}_in0")(h, embedding)
                h = block(features, attention=False, name=f"decoder_{level}_in1")(h, embedding)
            else:
                name = f"decoder_{level}_up"
                h = block(h.shape[-1], attention=False, resample=double, name=name)(h, embedding)
            for index in range(config.blocks + 1):
                h = mp_cat(h, skips.pop(), config.concatenation_balance)
                h = block(features, attention=config.attends(level), name=f"decoder_{level}_{index}")(h, embedding)
        return h
