"""The residual block of EDM2 (Karras et al. 2024, appendix B, config G)."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.models.attention import attend
from jaxgen.models.edm2.config import EDM2Config
from jaxgen.models.edm2.layers import MPConv, MPDense, zero_gain
from jaxgen.models.edm2.magnitude import mp_silu, mp_sum, normalize


class EDM2Block(nn.Module):
    """Change the resolution where asked for, add a modulated residual branch, attend where asked for, and clip.

    On the way down the width changes before the residual branch and each pixel is normalised; on the way up the branch
    reads the features as they come, and the width of the trunk changes beside it. The parameters are `skip` (only
    where the width changes), `residual_0`, `embed`, `embed_gain`, `residual_1`, and with attention `query_key_value`
    and `attend`.

    Attributes:
        config: sizes of the network.
        features: width of the output.
        attention: whether the block attends.
        deterministic: whether dropout is off.
        decoder: whether the block is on the way up.
        resample: changes the resolution of the input; None keeps it.
    """

    config: EDM2Config
    features: int
    attention: bool
    deterministic: bool
    decoder: bool = False
    resample: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "count rows columns inputs"], embedding: Float[Array, "count embedding"]
    ) -> Float[Array, "count new_rows new_columns features"]:
        """Apply the block to images and the conditioning vector of each."""
        config = self.config
        x = x if self.resample is None else self.resample(x)
        if not self.decoder:
            x = normalize(self._skip(x), (-1,))
        branch = self._residual(x, embedding)
        x = mp_sum(self._skip(x) if self.decoder else x, branch, config.residual_balance)
        if self.attention:
            x = mp_sum(x, self._attention(x), config.attention_balance)
        return jnp.clip(x, -config.clip, config.clip)

    def _skip(self, x):
        """Bring the trunk to the width of the output."""
        return x if x.shape[-1] == self.features else self._conv(1, ("width", "width_out"), "skip")(x)

    def _residual(self, x, embedding):
        """Conv(SiLU(Conv(SiLU(x)) * (1 + gain * embedding))), the gain starting at zero."""
        # Only the features between the two convolutions are split over devices: one sum joins them again.
        h = self._conv(3, ("width", "hidden"), "residual_0")(mp_silu(x))
        embed = MPDense(self.features, ("embedding", "hidden"), name="embed")
        scale = 1 + embed(embedding, zero_gain(self, "embed_gain"))
        h = mp_silu(h * scale[:, None, None].astype(h.dtype))
        h = nn.Dropout(self.config.dropout)(h, deterministic=self.deterministic)
        return self._conv(3, ("hidden", "width"), "residual_1")(h)

    def _attention(self, x):
        """Self-attention over the pixels with queries, keys and values of mean square 1 (cosine attention)."""
        count, rows, columns, features = x.shape
        head = self.config.channels_per_head
        # Head by head, within it feature by feature, the three next to one another: a split over devices is by heads.
        h = self._conv(1, ("width", "hidden"), "query_key_value", outputs=3)(x)
        tokens = normalize(h.reshape(count, rows * columns, features // head, head, 3), (3,))
        h = attend(*(tokens[..., index] for index in range(3))).reshape(x.shape)
        return self._conv(1, ("hidden", "width"), "attend")(h)

    def _conv(self, size: int, axes: tuple[str, str], name: str, outputs: int = 1) -> MPConv:
        return MPConv(outputs * self.features, size, axes, self.config.dtype, name=name)
