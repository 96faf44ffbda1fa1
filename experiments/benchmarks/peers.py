"""The sampling loops that jaxgen is compared with: two are restated in jax, that of diffusers is its own.

What is restated is named so in its claim, and a test shows that it computes the numbers of the library's sampler.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.diffusion import Level, Prediction
from jaxgen.typing import ArrayLike, PRNGKey, Sample, Scalar

MISSING = "needs torch and diffusers, which are not installed here: pip install -e '.[peers]'"
TRAINING_STEPS = 1000


class SmallNetwork(NamedTuple):
    """Weights of an MLP with two hidden layers that is told the time; numpy, so that jax and torch share them."""

    enter: np.ndarray
    time: np.ndarray
    hidden: np.ndarray
    leave: np.ndarray


def small_network(seed: int, features: int, width: int) -> SmallNetwork:
    """Draw weights that keep the size of their input."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) / rows**0.5).astype(np.float32)

    return SmallNetwork(matrix(features, width), matrix(1, width)[0], matrix(width, width), matrix(width, features))


def apply_in_jax(network: SmallNetwork, x: Sample, time: Scalar) -> Sample:
    """Apply the network to one sample, `[features]`, at a time of order 1."""
    h = jax.nn.silu(x @ network.enter + time * network.time)
    return jax.nn.silu(h @ network.hidden) @ network.leave


def diffusers_loop(
    kind: str, network: SmallNetwork, x: np.ndarray, steps: int, *, device: str = "cpu", **options: Any
) -> Callable[[], np.ndarray]:
    """Build the loop that every pipeline of diffusers runs, with the network in torch.

    From now on torch has one thread in this process. That is how it runs a small network fastest: with two it takes
    no less where both cores are free, and ten times as long where one is not, waiting for the other thread.

    Args:
        kind: name of the scheduler, on Stable Diffusion's noise with trailing timesteps.
        network: predicts the noise.
        x: `[batch, features]`, float32.
        steps: number of steps.
        device: torch's name of the device that network and samples are on, `cpu` or `cuda`.
        options: of the scheduler.

    Returns:
        A function that runs the loop and returns the samples, numpy `[batch, features]`.

    Raises:
        ImportError: torch or diffusers is not installed, or torch does not know the device; says so.
    """
    try:
        import torch
        from diffusers import schedulers
    except ImportError:
        raise ImportError(MISSING) from None
    if device == "cuda" and not torch.cuda.is_available():
        raise ImportError(f"needs a torch that sees the GPU; {torch.__version__}, which is installed here, does not")
    torch.set_num_threads(1)
    scheduler = getattr(schedulers, kind)(
        num_train_timesteps=TRAINING_STEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        **options,
    )
    start, enter, time, hidden, leave = (torch.from_numpy(array).to(device) for array in (x, *network))

    def predict(x: Any, t: Any) -> Any:
        h = torch.nn.functional.silu(x @ enter + t / (TRAINING_STEPS - 1) * time)
        return torch.nn.functional.silu(h @ hidden) @ leave

    def loop() -> np.ndarray:
        with torch.inference_mode():
            x = start
            scheduler.set_timesteps(steps, device=device)
            for t in scheduler.timesteps:
                x = scheduler.step(predict(scheduler.scale_model_input(x, t), t), t, x).prev_sample
            return x.cpu().numpy()

    return loop


def k_diffusion_loop(
    denoise: Callable[[Sample, Array], Sample], x: Float[Array, "batch features"], sigmas: Float[Array, " levels"]
) -> Float[ArrayLike, "batch features"]:
    """Run `sample_euler` of k-diffusion (Karras et al. 2022, algorithm 2 without churn) as it stands, in jax.

    A Python loop over steps: `denoise` is compiled, the update runs operation by operation. The original also draws
    noise in every step and multiplies it by 0; that is left out here, to its favour.
    """
    moved: Sample = x
    for i in range(len(sigmas) - 1):
        denoised = denoise(moved, sigmas[i])
        slope = (moved - denoised) / sigmas[i]
        moved = moved + slope * (sigmas[i + 1] - sigmas[i])
    return moved


class HackableStep(NamedTuple):
    """A complete step of hackable_diffusion: sample, number, time of each sample, key."""

    x: Float[Array, "batch features"]
    number: Array
    time: Float[Array, "batch 1"]
    key: PRNGKey


def hackable_loop(
    predict: Callable[[Array, Level], Prediction],
    alpha: Callable[[Any], Any],
    sigma: Callable[[Any], Any],
    key: PRNGKey,
    x: Float[Array, "batch features"],
    *,
    steps: int,
    stochasticity: float = 0.0,
    store_trajectory: bool = True,
) -> tuple[HackableStep, HackableStep | None]:
    """Run `DiffusionSampler` of hackable_diffusion with its `DDIMStep` and uniform times, restated; to be jitted.

    A table of all times (for each sample) and all keys is made first; the scan stacks every step; noise is drawn in
    every step, also where its coefficient is 0; the schedule is evaluated in every step; the last step stands alone.
    Beside version 1.0.1 itself: samples and trajectory equal to the bit, the same bytes of memory, time within 1 %.

    Args:
        predict: maps (x `[batch, features]`, level with entries `[batch, 1]`) to a prediction.
        alpha: the schedule, of the time.
        sigma: the schedule, of the time.
        key: split into one for each step.
        x: noise.
        steps: evaluations of the network, one less than what the original calls `num_steps`.
        stochasticity: its `stoch_coeff`: 0 is DDIM, 1 is DDPM.
        store_trajectory: whether every step is returned, as is the default of the original.

    Returns:
        The last step, and all of them, stacked, or None.
    """
    times = jnp.linspace(1.0 - 1e-6, 1e-6, steps + 1)
    table = HackableStep(
        x=jnp.zeros(steps + 1),  # has no sample yet
        number=jnp.arange(steps + 1),
        time=jnp.repeat(times[:, None, None], len(x), axis=1),
        key=jax.random.split(key, steps + 1),
    )

    def update(now: HackableStep, next: HackableStep, random: bool) -> HackableStep:
        level = Level(now.time, alpha(now.time), sigma(now.time))
        predicted = predict(now.x, level)
        next_alpha, next_sigma = alpha(next.time), sigma(next.time)
        noise = jax.random.normal(next.key, now.x.shape)
        r01 = next_sigma / level.sigma
        r11 = level.alpha / next_alpha * r01
        kept = 1.0 - stochasticity
        of_x = stochasticity * r11 * r01 + kept * r01
        of_x0 = next_alpha * (1.0 - stochasticity * r11**2 - kept * r11)
        std = next_sigma * jnp.sqrt(1.0 - (stochasticity * r11 + kept) ** 2)
        mean = of_x * now.x + of_x0 * predicted.x0
        return next._replace(x=mean + std * noise if random else mean)

    def body(now: HackableStep, next: HackableStep) -> tuple[HackableStep, HackableStep]:
        moved = update(now, next, random=True)
        return moved, moved

    first = _at(table, 0)._replace(x=x)
    before_last, stacked = jax.lax.scan(body, first, _at(table, slice(1, -1)))
    end = update(before_last, _at(table, -1), random=False)
    if not store_trajectory:
        return end, None
    return end, jax.tree.map(lambda a, b, c: jnp.concatenate([a[None], b, c[None]]), first, stacked, end)


def _at(steps: HackableStep, index: int | slice) -> HackableStep:
    return jax.tree.map(lambda leaf: leaf[index], steps)
