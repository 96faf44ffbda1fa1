"""The training loop that jaxgen's attention layer is compared with, restated in torch.

It is that of the official code of Zheng et al. 2024 (ML-GSAI/MesaOpt-AR-Transformer), operation by operation: complex
parameters; in every epoch a Python loop over t = 2 ... T-1, which predicts from the prefix e_1 ... e_t and computes

    W^PV E_t E_t^* W^KQ e_t / (t - 1)

for all sequences from the left to the right, so that nothing of one prefix serves the next; then automatic
differentiation and one step of plain SGD on all sequences at once. Left out, to its favour, is that the original
predicts a test set of the same size after every epoch, and makes its data in Python loops over coordinates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Complex, Float, Inexact

from experiments.benchmarks.peers import MISSING

Weights = dict[str, Inexact[np.ndarray, "rows columns"]]


class Port(NamedTuple):
    """The loop with its data and parameters.

    Attributes:
        epoch: takes one step on all sequences, with so many threads of torch from now on in this process, and returns
            the loss before it.
        weights: returns a copy of the parameters, `{"kq": [2d, 2d], "pv": [d, 2d]}`.
    """

    epoch: Callable[[int], float]
    weights: Callable[[], Weights]


def attention_port(
    x: Complex[np.ndarray, "batch time dim"],
    kq: Float[np.ndarray, "features features"],
    pv: Float[np.ndarray, "dim features"],
    step_size: float,
    *,
    real: bool = False,
) -> Port:
    """Set up the loop.

    Args:
        x: sequences, complex64 or complex128, which is what is computed in.
        kq: where W^KQ starts.
        pv: where W^PV starts.
        step_size: of SGD.
        real: keep the parameters real, as in the paper. Those of the original are complex: from real ones sampling
            noise moves their imaginary parts, and these the real ones.

    Raises:
        ImportError: torch is not installed; says so.
    """
    try:
        import torch
    except ImportError:
        raise ImportError(MISSING) from None
    count, length, d = x.shape
    sequences = torch.from_numpy(np.array(np.swapaxes(x, 1, 2), order="C"))
    tokens = torch.zeros((count, 2 * d, length), dtype=sequences.dtype)
    tokens[:, :d] = sequences
    tokens[:, d:, 1:] = sequences[:, :, :-1]
    kind = sequences.real.dtype if real else sequences.dtype
    parameters = {"kq": kq, "pv": pv}
    leaves = {
        name: torch.nn.Parameter(torch.from_numpy(np.array(start)).to(kind)) for name, start in parameters.items()
    }
    optimizer = torch.optim.SGD(leaves.values(), lr=step_size)

    def predict(prefix: Any) -> Any:
        # A real parameter has no product with complex tokens in torch; a complex one is taken as it is.
        w_kq, w_pv = (leaves[name].to(sequences.dtype) for name in ("kq", "pv"))
        return w_pv @ prefix @ prefix.mH @ w_kq @ prefix[:, :, -1:] / (prefix.shape[2] - 1)

    def epoch(threads: int) -> float:
        torch.set_num_threads(threads)
        optimizer.zero_grad()
        predictions = torch.cat([predict(tokens[:, :, :t]) for t in range(2, length)], dim=2)
        error = predictions - tokens[:, :d, 2:]
        loss = 0.5 * (error.conj_physical() * error).sum().real / count
        loss.backward()
        optimizer.step()
        return loss.item()

    return Port(epoch, lambda: {name: leaf.detach().numpy().copy() for name, leaf in leaves.items()})
