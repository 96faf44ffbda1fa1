"""The paper's settings, and the tables that the authors published: what they hold, and what is refused."""

import numpy as np
import pytest

from experiments.multi_source import references
from experiments.multi_source.references import Setting, settings, shared_coordinates


def test_there_are_fifteen_settings_and_the_base_is_in_each_sweep():
    found = settings()
    assert len(found) == 15
    base = [setting.sweep for setting in found if setting[1:] == (5, 500, 0.5)]
    assert base == ["K", "n", "sim"]
    assert len({setting[1:] for setting in found}) == 13
    assert [setting.name for setting in found[:2]] == ["K = 1", "K = 3"]
    assert (found[5].name, found[11].name) == ("n = 100", "sim = 0.3")


def test_shared_coordinates_are_rounded_where_the_authors_cut_off():
    assert (int(0.29 * 100), shared_coordinates(0.29, 100)) == (28, 29)
    for setting in settings():
        assert setting.dim_shared == int(setting.similarity * references.DIMENSION)
        assert setting.dim_shared + setting.dim_specific == references.DIMENSION
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"similarity must lie in \[0, 1\], got"):
            shared_coordinates(wrong, 10)


def test_the_published_bounds_are_the_formula_with_constant_one():
    for setting, row in references.published().items():
        assert setting.bound(shared=False) == pytest.approx(row.bound_single, rel=1e-12)
        assert setting.bound(shared=True) == pytest.approx(row.bound_multi, rel=1e-12)
        assert setting.ratio == pytest.approx(row.bound_multi / row.bound_single, rel=1e-12)
    assert Setting("K", 10, 500, 0.5).ratio == pytest.approx(0.7416198487095663, rel=1e-12)
    assert Setting("K", 3, 500, 0.3).ratio == pytest.approx(0.8944271909999159, rel=1e-12)


def test_the_published_values_are_those_of_the_tables():
    found = {setting.name: (row.single, row.multi) for setting, row in references.published().items()}
    np.testing.assert_allclose(found["K = 15"], (0.209824, 0.154412), atol=5e-7)
    np.testing.assert_allclose(found["n = 5000"], (0.038494, 0.029033), atol=5e-7)
    np.testing.assert_allclose(found["sim = 1"], (0.123970, 0.048970), atol=5e-7)
    assert len(found) == 15


def test_the_means_are_k_where_sources_differ_and_zero_where_they_agree():
    assert references.source_means(2, 1, 3) == [[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]
    assert references.source_means(2, 0, 2) == [[1.0, 1.0], [2.0, 2.0]]
    assert references.source_means(2, 2, 2) == [[0.0, 0.0], [0.0, 0.0]]


def test_a_table_with_other_settings_is_refused(monkeypatch):
    rows = references._rows

    def other(name):
        return [{**row, "n": row["n"] + 1} if name == "results_K.csv" else row for row in rows(name)]

    monkeypatch.setattr(references, "_rows", other)
    with pytest.raises(
        ValueError, match=r"results_K.csv holds \(K, n, sim, D\) = \(1.0, 501.0, .* where K = 1 belongs"
    ):
        references.published()
