import math

import jax
import pytest

from jaxgen.models import EDM2, EDM2Config, abstract_params, edm2_config


def size(config):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(EDM2(config))))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("XXS", 31_309_029),
        ("XS", 124_713_253),
        ("S", 280_212_837),
        ("M", 497_807_781),
        ("L", 777_498_085),
        ("XL", 1_119_283_749),
        ("XXL", 1_523_164_773),
    ],
)
def test_sizes_have_the_published_numbers_of_parameters(name, parameters):
    assert size(edm2_config(name, (64, 64, 4), 1000)) == parameters


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (edm2_config("XS", (32, 32, 4), 10), 118_701_349),
        (edm2_config("XS", (32, 32, 4), 3), 118_697_765),
        (edm2_config("XS", (32, 32, 4), 1), 118_696_741),
        (
            EDM2Config(
                image_shape=(16, 16, 3),
                num_classes=3,
                width=32,
                multipliers=(1, 2),
                blocks=1,
                attention_sides=(8,),
                channels_per_head=32,
                uncertainty_width=32,
            ),
            723_147,
        ),
    ],
)
def test_other_configurations_have_the_derived_numbers_of_parameters(config, parameters):
    assert size(config) == parameters


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 0),
        ("width", 0),
        ("blocks", 0),
        ("channels_per_head", 0),
        ("uncertainty_width", 0),
        ("multipliers", ()),
        ("multipliers", (1, 0)),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("label_balance", 1.1),
        ("residual_balance", -0.1),
        ("attention_balance", math.nan),
        ("concatenation_balance", 2.0),
        ("clip", 0.0),
        ("clip", math.inf),
        ("dtype", "int8"),
        ("image_shape", (32, 16, 3)),
        ("image_shape", (32, 32, 0)),
        ("image_shape", (36, 36, 3)),
        ("attention_sides", (0,)),
    ],
)
def test_configuration_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"^{field} must"):
        EDM2Config(**{field: value})


def test_heads_that_do_not_fit_are_refused_instead_of_dropped():
    with pytest.raises(ValueError, match="divide the 32 features of the level of side 16, which attends, got 64"):
        EDM2Config(image_shape=(32, 32, 3), width=16)
    # The level of side 16 is allowed any width when it does not attend; the lowest level always attends.
    sizes = {"image_shape": (16, 16, 3), "width": 16, "multipliers": (1, 4)}
    assert EDM2Config(attention_sides=(8,), **sizes).attends(1)
    with pytest.raises(ValueError, match="divide the 16 features of the level of side 16"):
        EDM2Config(attention_sides=(16,), **sizes)
    with pytest.raises(ValueError, match="divide the 64 features of the level of side 8"):
        EDM2Config(attention_sides=(), channels_per_head=48, **sizes)


def test_published_sizes_can_be_changed_and_others_are_refused():
    config = edm2_config("M", (32, 32, 4), 10, dropout=0.2, dtype="bfloat16")
    assert (config.width, config.dropout, config.dtype) == (256, 0.2, "bfloat16")
    assert [edm2_config(name, (64, 64, 4), 10).dropout for name in ("S", "M", "XXL")] == [0.0, 0.1, 0.1]
    with pytest.raises(ValueError, match="XL, XXL, got 'XXXL'"):
        edm2_config("XXXL", (64, 64, 4), 10)
