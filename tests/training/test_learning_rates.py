import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgen.training import inverse_root_rate, of_images, stepped_inverse_root_rate

RAMP = 10_000_000
LAWS = [inverse_root_rate, stepped_inverse_root_rate]


@pytest.mark.parametrize(
    ("law", "images", "peak", "reference", "rate"),
    [
        (inverse_root_rate, 5e6, 0.01, 70_000, 0.005),
        (inverse_root_rate, 2**31, 0.012, 70_000, 0.003100489817653817),
        (stepped_inverse_root_rate, 136_183_812, 0.004, 3000, 0.00042480816538186775),
        (inverse_root_rate, 136_183_812, 0.004, 3000, 0.0008496163307637355),
    ],
)
def test_rates_of_the_published_settings(law, images, peak, reference, rate):
    with jax.enable_x64(True):
        schedule = law(peak, reference_images=reference * 2048, ramp_images=RAMP)
        np.testing.assert_allclose(schedule(images), rate, rtol=1e-15)
        counted = of_images(schedule, 2048)(jnp.asarray(images // 2048, jnp.int32))
        np.testing.assert_allclose(counted, rate, rtol=3e-4)  # a count is a whole number of batches
    np.testing.assert_allclose(schedule(float(images)), rate, rtol=1e-6)  # float32


@given(st.integers(0, 2**40), st.integers(1, 2**40), st.integers(0, 2**30))
def test_the_laws_are_their_formulas(images, reference, ramp):
    ramped = min(images / ramp, 1) if ramp else 1
    passed = images / reference
    with jax.enable_x64(True):
        options = {"reference_images": float(reference), "ramp_images": float(ramp)}
        smooth, stepped = (law(3.0, **options)(float(images)) for law in LAWS)
    np.testing.assert_allclose(smooth, 3.0 / max(passed, 1) ** 0.5 * ramped, rtol=1e-14)
    np.testing.assert_allclose(stepped, (3.0 if passed <= 1 else 3.0 / (4 * passed) ** 0.5) * ramped, rtol=1e-14)


@pytest.mark.parametrize("law", LAWS)
def test_the_first_step_has_the_rate_zero_and_without_a_ramp_the_peak(law):
    optimiser = optax.sgd(of_images(law(0.5, reference_images=100, ramp_images=20), 5))
    state, params = optimiser.init(jnp.ones(())), jnp.ones(())
    changes = []
    for _ in range(5):
        change, state = optimiser.update(jnp.ones(()), state, params)
        changes.append(-float(change))
    np.testing.assert_allclose(changes, [0.0, 0.125, 0.25, 0.375, 0.5], rtol=1e-6)
    assert float(law(0.5, reference_images=100, ramp_images=0)(0)) == 0.5


def test_the_stepped_law_halves_at_once_and_is_half_the_other_from_there():
    smooth, stepped = (law(1.0, reference_images=1000, ramp_images=0) for law in LAWS)
    assert float(stepped(1000)) == 1.0
    np.testing.assert_allclose(stepped(1001), 0.5, rtol=1e-3)
    for images in (1001, 4000, 10**6):
        np.testing.assert_allclose(stepped(images), 0.5 * smooth(images), rtol=1e-6)


@pytest.mark.parametrize("law", LAWS)
def test_more_images_than_an_int32_counts_do_not_wrap_round(law):
    schedule = law(1.0, reference_images=2**20, ramp_images=0)
    count = jnp.asarray(2**20, jnp.int32)  # of 4096 images, 2^32 in all
    np.testing.assert_allclose(of_images(schedule, 4096)(count), schedule(2.0**32), rtol=1e-6)
    np.testing.assert_allclose(of_images(schedule, jnp.asarray(4096, jnp.int32))(count), schedule(2.0**32), rtol=1e-6)
    assert float(schedule(2.0**32)) <= 2.0**-6 * 1.000001


@pytest.mark.parametrize("law", LAWS)
def test_other_numbers_compile_nothing(law):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def rate(count, peak, reference, ramp, batch):
        return of_images(law(peak, reference_images=reference, ramp_images=ramp), batch)(count)

    for peak, reference, ramp, batch in ((0.1, 100.0, 50.0, 8), (0.2, 10.0, 0.0, 16)):
        expected = of_images(law(peak, reference_images=reference, ramp_images=ramp), batch)
        for count in (0, 3, 40):
            np.testing.assert_allclose(rate(count, peak, reference, ramp, batch), expected(count), rtol=1e-6)


@pytest.mark.parametrize("law", LAWS)
def test_the_laws_lower_for_every_platform_in_single_precision(law):
    def rate(count, peak, reference, ramp):
        return of_images(law(peak, reference_images=reference, ramp_images=ramp), 8)(count)

    shapes = [jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32, jnp.int32)]
    exported = jax.export.export(jax.jit(rate), platforms=["cpu", "cuda", "tpu"])(*shapes)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "f64" not in exported.mlir_module()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"peak": -1.0}, "peak of a learning rate must be at least 0 and finite, got -1.0"),
        ({"peak": float("nan")}, "peak .* got nan"),
        ({"reference_images": 0}, "reference_images must be above 0 and finite, got 0"),
        ({"reference_images": float("inf")}, "reference_images must be above 0 and finite, got inf"),
        ({"ramp_images": -1}, "ramp_images must be at least 0 and finite, 0 for no ramp, got -1"),
        ({"ramp_images": np.float32(np.nan)}, "ramp_images .* got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(law, changed, message):
    options = {"peak": 1.0, "reference_images": 10, "ramp_images": 0, **changed}
    with pytest.raises(ValueError, match=message):
        law(options.pop("peak"), **options)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="batch_size must be above 0, got 0"):
        of_images(lambda images: images, 0)
