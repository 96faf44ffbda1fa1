"""What tests ask of lowered programs."""

import math
import re

import jax

PLATFORMS = ("cpu", "cuda", "tpu")
_BYTES = {"i1": 1, "i8": 1, "ui8": 1, "f16": 2, "bf16": 2, "i64": 8, "ui64": 8, "f64": 8}


def constant_bytes(lowered):
    """Bytes of all constants in a lowered program, but for those that are one number repeated."""
    # Read from the text, which holds the constants of all inner functions too; those of a jaxpr are spread over it.
    written = r'dense(?:_resource)?<(?:"0x|\[|__elided__)[^>]*> : tensor<((?:\d+x)+)(\w+)>'
    return sum(
        math.prod(map(int, sizes.split("x")[:-1])) * _BYTES.get(dtype, 4)
        for sizes, dtype in re.findall(written, lowered.as_text())
    )


def assert_portable(function, *shapes):
    """Lower a jitted function for every platform, in single precision."""
    exported = jax.export.export(function, platforms=PLATFORMS)(*shapes)
    assert exported.platforms == PLATFORMS
    text = exported.mlir_module()
    assert "f64" not in text, "f64 in the program"  # which complex<f64> contains
    assert "stablehlo.dot_general" in text
