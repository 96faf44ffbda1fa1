"""The claims of the benchmarks, fixed before their first run."""

from experiments.claims import Claim

_SAMPLERS = "jaxgen, targets fixed before the first measurement"
_GPU_ONLY = "speaks of a GPU, where one batched call fills the device; seconds on one"

CLAIMS = (
    Claim(
        "P1",
        "on a CPU, a step of DDIM or DPM-Solver++ 2M is at least 3 times as fast as that of the loop of diffusers "
        "with the same small network in torch",
        source=f"{_SAMPLERS}; peer: diffusers, DDIMScheduler and DPMSolverMultistepScheduler",
        rule="greater",
        reference=3.0,
    ),
    Claim(
        "P2",
        "a DDIM step is at least 3 times as fast as one of a Python loop over steps with a jitted denoiser",
        source=f"{_SAMPLERS}; peer: k-diffusion, sample_euler, restated in jax",
        rule="greater",
        reference=3.0,
    ),
    Claim(
        "P3",
        "with a denoiser that costs nothing, a DDIM step takes at most the time of that of hackable_diffusion",
        source=f"{_SAMPLERS}; peer: hackable_diffusion, DiffusionSampler and DDIMStep, restated (it needs Python 3.12)",
        rule="greater",
        reference=1.0,
    ),
    Claim(
        "P4",
        "1,000 steps of DDIM need at most 2 % of the memory of the loop of hackable_diffusion, which by default "
        "returns its trajectory",
        source=f"{_SAMPLERS}; peer: hackable_diffusion, DiffusionSampler with DDIMStep, restated; XLA's buffers",
        rule="less",
        reference=0.02,
        test="deterministic",
    ),
    Claim(
        "P5",
        "DDIM takes at most 1.05 times a scan of nothing but its network calls (digits network, batch of 256)",
        source=_SAMPLERS,
        rule="less",
        reference=1.05,
    ),
    Claim(
        "P6",
        "a changed guidance scale, eta, guidance interval, grid or seed compiles nothing anew",
        source=_SAMPLERS,
        rule="exact",
        reference=1.0,
        test="deterministic",
    ),
    Claim(
        "P7",
        "on a GPU, guidance with both predictions in one call is at least 1.2 times as fast as with two calls",
        source=_SAMPLERS,
        rule="greater",
        reference=1.2,
        not_run={"ci": _GPU_ONLY, "default": _GPU_ONLY},
    ),
    Claim(
        "P8",
        "with a denoiser that costs nothing, a DDIM step that draws noise (eta = 1) takes at most the time of that of "
        "hackable_diffusion",
        source=f"{_SAMPLERS}; peer: hackable_diffusion, DiffusionSampler and DDIMStep, restated (it needs Python 3.12)",
        rule="greater",
        reference=1.0,
        expected="refuted",
        expected_reason="nearly all of the time draws 64 numbers a sample, 64 blocks of Threefry; the key of each "
        "sample, which makes it independent of its batch, is one block more, 1.6 %",
    ),
)
