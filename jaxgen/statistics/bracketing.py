r"""Upper bracketing numbers of conditional families whose sources share parameters, or do not.

An epsilon-bracket of a family is a finite set of functions g(x|y), not densities, such that every member lies below
some g everywhere with int (g - p)(x|y) dx <= epsilon for every y; the bracketing number N(epsilon) is the least size of
such a set. A family in which K sources share parameters is a part of the one in which they do not, so that its number
is no larger. All numbers here are logarithms, on the host. Those of Gaussians and of networks (`log_cover_mlp`) are
proved upper bounds; those of the two conditional families count embeddings as weights of the network, and bound only if
its depth and width count the layers and inputs by which they enter (see `log_bracket_arm`).
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.statistics.power import Number
from jaxgen.typing import ArrayLike


class ArmSize(NamedTuple):
    """An autoregressive network over tokens whose condition enters by an embedding.

    Attributes:
        depth: layers L of the network.
        width: neurons W of its widest layer.
        nonzero: weights S that are not 0.
        bound: largest size B of a weight.
        length: tokens D of a sequence.
        categories: values M of a token.
        embedding: numbers d_e of an embedding: of each value of a token, each position and each source.
    """

    depth: int
    width: int
    nonzero: int
    bound: Number
    length: int
    categories: int
    embedding: int

    @property
    def shared(self) -> int:
        """Return how many parameters all sources can share: the network and the embeddings but for the condition's."""
        return self.nonzero + self.length + (self.length + self.categories) * self.embedding

    @property
    def specific(self) -> int:
        """Return how many parameters a source has of its own: the embedding of the condition."""
        return self.embedding


class EbmSize(NamedTuple):
    """An energy network on the unit cube whose condition enters by an embedding.

    Attributes:
        depth: layers L of the network.
        width: neurons W of its widest layer.
        nonzero: weights S that are not 0.
        bound: largest size B of a weight.
        embedding: numbers d_e of a source's embedding.
    """

    depth: int
    width: int
    nonzero: int
    bound: Number
    embedding: int

    @property
    def shared(self) -> int:
        """Return how many parameters all sources can share: the network."""
        return self.nonzero

    @property
    def specific(self) -> int:
        """Return how many parameters a source has of its own: the embedding of the condition."""
        return self.embedding


class GaussianBracket(NamedTuple):
    """A bracket of all Gaussians of unit covariance with means in a cube, around the centres of a grid.

    Attributes:
        eta: by how much the bracketing functions are flatter than the densities: their covariance is 1 / (1 - eta).
        radius: how far from a centre a mean may lie and its density stay below the function around the centre.
        cells: centres along each coordinate.
    """

    eta: float
    radius: float
    cells: int


def gaussian_bracket(dim: int, bound: Number, epsilon: Number) -> GaussianBracket:
    r"""Construct a bracket of N(mu, I) with mu in [-bound, bound]^dim.

    With $\eta = 1 - (1 + \epsilon)^{-1/d}$ and $r^2 = \log(1 + \epsilon) \eta / (1 - \eta)$ the function
    $g_j(x) = (2 \pi)^{-d/2} \exp(-(1 - \eta) |x - \mu_j|^2 / 2 + (1/\eta - 1) r^2 / 2)$ has the integral
    $1 + \epsilon$ and dominates every N(mu, I) with $|\mu - \mu_j| \le r$; a grid with $\lceil B \sqrt d / r \rceil$
    cells along each coordinate has a centre so near to any mean.

    Args:
        dim: dimension d.
        bound: half the side B of the cube.
        epsilon: the gap.

    Raises:
        ValueError: `dim` is below 1, or `bound` or `epsilon` are not positive.

    >>> gaussian_bracket(10, 5.0, 1 / 500).cells
    25024
    """
    _check_positive(dim=dim, bound=bound, epsilon=epsilon)
    log_mass = math.log1p(epsilon)
    eta = -math.expm1(-log_mass / dim)
    radius = math.sqrt(log_mass * eta / (1 - eta))
    return GaussianBracket(eta, radius, math.ceil(bound * math.sqrt(dim) / radius))


def bracket_centre(mean: Float[ArrayLike, "*batch dim"], bound: Number, cells: int) -> Float[Array, "*batch dim"]:
    """Return the centre of the cell that a mean lies in, on the grid of `cells` a coordinate over [-bound, bound]."""
    _check_positive(bound=bound, cells=cells)
    side = 2 * bound / cells
    return -bound + side * (jnp.clip(jnp.floor((jnp.asarray(mean) + bound) / side), 0, cells - 1) + 0.5)


def log_bracket_density(
    x: Float[ArrayLike, "*batch dim"], centre: Float[ArrayLike, "*batch dim"], epsilon: Number
) -> Float[Array, "*batch"]:
    """Return the logarithm of the bracketing function of `gaussian_bracket` around a centre.

    Args:
        x: points.
        centre: one for each point.
        epsilon: the gap.

    Raises:
        ValueError: `epsilon` is not positive.
    """
    dim = jnp.shape(x)[-1]
    eta, radius, _ = gaussian_bracket(dim, 1.0, epsilon)
    squared = jnp.sum((jnp.asarray(x) - centre) ** 2, axis=-1)
    return -(1 - eta) / 2 * squared + (1 / eta - 1) * radius**2 / 2 - dim / 2 * math.log(2 * math.pi)


def log_bracket_gaussian(
    num_sources: int, dim_specific: int, dim_shared: int, bound: Number, epsilon: Number, *, shared: bool
) -> float:
    """Bound the logarithm of the bracketing number of conditional Gaussians of unit covariance.

    Args:
        num_sources: K.
        dim_specific: coordinates whose means differ between the sources.
        dim_shared: coordinates that they share.
        bound: means lie in [-bound, bound] in each coordinate.
        epsilon: the gap.
        shared: whether the family shares the shared coordinates.

    Raises:
        ValueError: K is below 1, a dimension is negative or both are 0, or `bound` or `epsilon` are not positive.

    >>> round(log_bracket_gaussian(5, 5, 5, 5.0, 1 / 500, shared=True), 8)
    303.8277193
    """
    total = count_parameters(dim_shared, dim_specific, num_sources, shared=shared)
    return total * math.log(gaussian_bracket(dim_specific + dim_shared, bound, epsilon).cells)


def log_bracket_arm(size: ArmSize, num_sources: int, epsilon: Number, *, shared: bool) -> float:
    """Bound the logarithm of the bracketing number of autoregressive networks.

    Logits within tau in the largest entry move log p(x|y) by at most 2 tau D, so that exp(2 tau D) p brackets at
    tau = log(1 + epsilon) / (2 D): what is left is a covering of the network. Embeddings are assumed to be weights of
    it: an embedding is a linear layer on zeros and ones, so that this is a bound if the depth counts that layer, the
    width its inputs and the network's logits, and embeddings are no larger than the bound on weights.

    Args:
        size: of the network and its embeddings.
        num_sources: K.
        epsilon: the gap.
        shared: whether the sources share all but the embedding of the condition.

    Raises:
        ValueError: a size, K or `epsilon` is not positive.
    """
    _check_positive(**size._asdict(), epsilon=epsilon)
    total = count_parameters(size.shared, size.specific, num_sources, shared=shared)
    return log_cover_mlp(total, size.depth, size.width, size.bound, math.log1p(epsilon) / (2 * size.length))


def log_bracket_ebm(size: EbmSize, num_sources: int, epsilon: Number, *, shared: bool) -> float:
    """Bound the logarithm of the bracketing number of energy networks on the unit cube.

    Energies within tau of each other give densities within a factor exp(2 tau): tau = log(1 + epsilon) / 2. What is
    assumed of the embedding is as in `log_bracket_arm`.

    Args:
        size: of the network and its embedding.
        num_sources: K.
        epsilon: the gap.
        shared: whether the sources share all but the embedding of the condition.

    Raises:
        ValueError: a size, K or `epsilon` is not positive.
    """
    _check_positive(**size._asdict(), epsilon=epsilon)
    total = count_parameters(size.shared, size.specific, num_sources, shared=shared)
    return log_cover_mlp(total, size.depth, size.width, size.bound, math.log1p(epsilon) / 2)


def log_cover_mlp(nonzero: int, depth: int, width: int, bound: Number, tau: Number) -> float:
    r"""Bound the logarithm of the covering number of ReLU networks in the supremum over the unit cube.

    $S \log(L W (W + 1) (1 + L (b (W + 1))^L / \tau))$ with $b = \max(B, 1)$, and 0 where $\tau \ge (b (W + 1))^L$. Of
    order S L log(b W L / tau), which is where the factor L of the rates comes from.

    Let $h_0 = x$ and $h_l$ be the outputs of layer l, $A_l h_{l-1} + c_l$ with a ReLU after all but the last, which
    moves no two vectors apart in the largest entry. A neuron has at most W inputs and a bias, all in [-B, B], so that
    $\max(|h_l|, 1) \le b (W + 1) \max(|h_{l-1}|, 1)$, which is at most $(b (W + 1))^l$. Let another network have
    parameters that differ by at most $\eta$. Then
    $|h_l - h_l'| \le W B |h_{l-1} - h_{l-1}'| + \eta (W + 1) \max(|h_{l-1}|, 1)$, and by induction
    $|h_l - h_l'| \le l \eta (W + 1)^l b^{l-1}$. So $\eta = \tau / (L (W + 1)^L b^{L-1})$ serves, for which a
    parameter takes the middles of $\lceil B / \eta \rceil \le 1 + L (b (W + 1))^L / \tau$ cells. The parameters that
    are not 0 are S of at most L W (W + 1), in at most $(L W (W + 1))^S$ ways. If tau is at least the largest output,
    one network that is 0 covers all.

    Args:
        nonzero: parameters S that are not 0, biases among them, wherever they are.
        depth: layers L.
        width: numbers W in the widest layer, the input and the output among the layers.
        bound: largest size B of a parameter.
        tau: radius of the cover.

    Raises:
        ValueError: an argument is not positive.

    >>> round(log_cover_mlp(1, 1, 1, 100.0, 0.01), 4)  # lines through 0 alone need 10,000 balls
    10.5967
    """
    _check_positive(nonzero=nonzero, depth=depth, width=width, bound=bound, tau=tau)
    log_reach, log_tau = depth * math.log(max(bound, 1.0) * (width + 1)), math.log(tau)
    if log_tau >= log_reach:
        return 0.0
    # log(1 + x) by log x, which is positive here, since x itself may be beyond all floating-point numbers.
    log_cells = math.log(depth) + log_reach - log_tau
    log_cells += math.log1p(math.exp(-log_cells))
    return nonzero * (log_cells + math.log(depth * width * (width + 1)))


def count_parameters(num_shared: int, num_specific: int, num_sources: int, *, shared: bool) -> int:
    """Count the parameters of K sources of which each has `num_specific` of its own, and some that could be shared.

    Args:
        num_shared: parameters that all sources can share.
        num_specific: parameters of each source alone.
        num_sources: K.
        shared: whether they do share them, or each has its own.

    Raises:
        ValueError: K is below 1, a count is negative, or both are 0.

    >>> count_parameters(5, 5, 5, shared=True), count_parameters(5, 5, 5, shared=False)
    (30, 50)
    """
    if num_sources < 1:
        raise ValueError(f"num_sources must be at least 1, got {num_sources}")
    if min(num_shared, num_specific) < 0 or num_shared + num_specific < 1:
        raise ValueError(
            "numbers of shared and source-specific parameters must be at least 0 with a sum of at least 1, got "
            f"{num_shared} and {num_specific}"
        )
    return num_shared + num_sources * num_specific if shared else num_sources * (num_shared + num_specific)


def _check_positive(**numbers: Number) -> None:
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name} must be finite and positive, got {number}")
