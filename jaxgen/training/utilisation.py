"""How much of the devices' peak a step of training uses: model FLOPs over what the hardware could have done.

Model FLOPs utilisation (Chowdhery et al. 2022, "PaLM", appendix B) counts what the mathematics of a step asks for, not
what the program happens to do, so that two implementations of one model compare.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

# Dense products of bfloat16, in 1e12 FLOP/s; of float16 where there is no bfloat16 (V100, T4). Keys are words of the
# device kind; of several entries that match, the first one counts.
_NVIDIA_TERAFLOPS: tuple[tuple[frozenset[str], float], ...] = (
    (frozenset({"V100", "PCIE"}), 112.0),
    (frozenset({"V100"}), 125.0),
    (frozenset({"T4"}), 65.0),
    (frozenset({"A10"}), 125.0),
    (frozenset({"L4"}), 121.0),
    (frozenset({"L40S"}), 362.0),
    (frozenset({"A100"}), 312.0),
    (frozenset({"H100", "PCIE"}), 756.0),
    (frozenset({"H100", "NVL"}), 835.0),
    (frozenset({"H100"}), 989.0),
    (frozenset({"H200", "NVL"}), 835.0),
    (frozenset({"H200"}), 989.0),
    (frozenset({"B200"}), 2250.0),
)
# Of one jax device, which is one of the two cores of a chip for v2, v3 and TPU7x, and a whole chip otherwise.
_TPU_TERAFLOPS = {
    "TPU v2": 46.0 / 2,
    "TPU v3": 123.0 / 2,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "TPU7x": 2307.0 / 2,
}
# Primitives that may hold products which no rule below sees.
_OPAQUE = ("pallas_call", "ragged_dot_general", "ffi_call", "dot_product_attention_fwd", "dot_product_attention_bwd")


@runtime_checkable
class Device(Protocol):
    """What says which hardware it is: a `jax.Device`."""

    @property
    def device_kind(self) -> str:
        """Return the name of the hardware, such as "NVIDIA H100 80GB HBM3" or "TPU v5 lite"."""
        ...


def peak_flops(device: Device) -> float | None:
    """Return the peak FLOP/s of one device for dense products of bfloat16, or None where it is not known.

    The numbers are those of the vendors' data sheets, without structured sparsity, which doubles what NVIDIA prints
    from the A100 on. V100 and T4 have no bfloat16: theirs is float16's.

    - NVIDIA V100, T4, A10, L4, L40S, A100, H100, H200, HGX B200: the data sheet of each; H100 and H200 are the SXM
      boards unless their name says PCIe or NVL. A slice of a GPU (MIG) is not known.
    - TPU v2, v3: Jouppi et al. 2020, "A domain-specific supercomputer for training deep neural networks"; from v4 on
      https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and the page of each generation. They are of a chip,
      and a jax device of v2, v3 and TPU7x is one of its two cores, so half of them.

    Args:
        device: such as `jax.devices()[0]`.

    >>> peak_flops(jax.devices("cpu")[0]) is None
    True
    """
    kind = device.device_kind
    if kind in _TPU_TERAFLOPS:
        return 1e12 * _TPU_TERAFLOPS[kind]
    words = set(kind.upper().replace("-", " ").split())
    if not words & {"NVIDIA", "TESLA"} or "MIG" in words:
        return None
    return next((1e12 * peak for names, peak in _NVIDIA_TERAFLOPS if names <= words), None)


def count_flops(function: Callable[..., Any], *shapes: Any) -> float:
    """Count the FLOPs of the matrix products and convolutions of one call, a multiplication with its addition as 2.

    The traced program is walked: a scan counts its body once a step, a conditional its largest branch, and a
    `shard_map` its body once a device. (XLA's own cost analysis counts the body of a loop once.) Everything else
    (element-wise operations, reductions, factorisations) is left out, as usual for model FLOPs. So are the products
    of a convolution with padding and with the holes of a dilation, so that its two gradients cost what it costs.
    Nothing runs and nothing is compiled.

    Args:
        function: a pure function; a training step counts forward and backward pass.
        *shapes: its arguments, as arrays or `jax.ShapeDtypeStruct`s in trees.

    Returns:
        The number of FLOPs, over all devices.

    Raises:
        ValueError: if the program recomputes in its backward pass what `jax.checkpoint` did not store, which model
            FLOPs leave out: count the model without it; if products are inside a while loop, whose number of steps is
            unknown; if there is a kernel whose products cannot be seen.

    >>> matrix = jax.ShapeDtypeStruct((10, 10), np.float32)
    >>> count_flops(lambda a, b: a @ b, matrix, matrix)
    2000.0
    """
    return float(_count(jax.make_jaxpr(function)(*shapes).jaxpr))


def utilisation(flops_per_step: float, seconds_per_step: float, devices: Sequence[Device]) -> float | None:
    """Return the share of the devices' peak FLOP/s that a step uses, or None if one of the peaks is not known.

    Args:
        flops_per_step: of the whole step, over all devices, as from `count_flops`.
        seconds_per_step: wall time.
        devices: all that take part, such as `mesh.devices.flat`.

    Raises:
        ValueError: if the time is not positive, the FLOPs are negative or there is no device.
    """
    if not 0 < seconds_per_step < math.inf:
        raise ValueError(f"seconds_per_step must be positive and finite, got {seconds_per_step}")
    if not 0 <= flops_per_step < math.inf:
        raise ValueError(f"flops_per_step must be at least 0 and finite, got {flops_per_step}")
    if not devices:
        raise ValueError("devices must name at least one device, got none")
    peaks = [peak_flops(device) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    return flops_per_step / seconds_per_step / sum(known) if len(known) == len(peaks) else None


def _count(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _count_dot(equation)
    if name == "conv_general_dilated":
        return _count_convolution(equation)
    if name in _OPAQUE:
        raise ValueError(f"the products inside {name!r} cannot be counted; count a function without it")
    inner = [_count(getattr(jaxpr, "jaxpr", jaxpr)) for jaxpr in jaxprs_in_params(params)]
    if not any(inner):
        return 0
    if params.get("differentiated"):
        raise ValueError(
            "the backward pass recomputes products that jax.checkpoint did not store, which are no model FLOPs; "
            "count the model with remat=False"
        )
    if name == "while":
        raise ValueError("the number of steps of a while loop with products is unknown; use a scan, or count its body")
    if name == "cond":
        return max(inner)
    return sum(inner) * _repeats(name, params)


def _repeats(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        split = next(value for key, value in params.items() if key.endswith("manual_axes"))
        return math.prod(params["mesh"].shape[axis] for axis in split)
    return 1


def _count_dot(equation: JaxprEqn) -> int:
    """Count the product of every output with every contracted entry."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, output = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return _flops(equation) * math.prod(output) * math.prod(left[axis] for axis in contracted)


def _count_convolution(equation: JaxprEqn) -> int:
    """Count the products of every output with its group's features at every tap that meets an entry of the image."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    image, kernel, output = (_shape(variable) for variable in (*equation.invars, *equation.outvars))
    products = math.prod(output[axis] for axis in numbers.out_spec[:2]) * kernel[numbers.rhs_spec[1]]
    for axis, (low, _) in enumerate(params["padding"]):
        places = np.arange(output[numbers.out_spec[2 + axis]])
        taps = np.arange(kernel[numbers.rhs_spec[2 + axis]])
        # Where each tap falls, in units of the image with holes between its entries.
        met = params["window_strides"][axis] * places[:, None] + params["rhs_dilation"][axis] * taps[None] - low
        hole = params["lhs_dilation"][axis]
        last = (image[numbers.lhs_spec[2 + axis]] - 1) * hole
        products *= int(np.sum((met >= 0) & (met <= last) & (met % hole == 0)))
    return _flops(equation) * products


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _flops(equation: JaxprEqn) -> int:
    """Return the FLOPs of one product and its addition; a complex one is 4 real ones."""
    output: Any = equation.outvars[0].aval
    return 8 if np.issubdtype(output.dtype, np.complexfloating) else 2
