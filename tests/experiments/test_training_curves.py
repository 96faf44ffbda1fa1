import json
import math
import os
import random

import pytest

from experiments import report, training_curves
from experiments.training_curves import FRAME, Curve, TrainingCurves, plot


def curve_of(points, most=training_curves.MOST_POINTS):
    curve = Curve(most)
    for step, value in points:
        curve.add(step, value)
    return curve


def coordinates(found):
    return [tuple(map(float, point.split(","))) for point in found.points.split()]


def write(path, rows, mode="a"):
    with path.open(mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17, 64, 100, 1000])
def test_a_thinned_curve_holds_the_averages_of_equal_groups_of_lines(count):
    random.seed(count)
    points = [(3 * step, random.gauss(0, 1)) for step in range(count)]
    found = curve_of(points, most=8)
    width = found.width
    assert width == 1 or 4 * width < count  # halved no more often than it takes
    groups = [points[first : first + width] for first in range(0, count, width)]
    assert len(groups) <= 8
    for point, group in zip(found.points(), groups, strict=True):
        assert point == pytest.approx([sum(axis) / len(group) for axis in zip(*group, strict=True)])


def test_what_is_not_finite_is_counted_and_left_out():
    found = curve_of([(1, 1.0), (2, None), (3, math.inf), (4, 2.0)])
    assert found.points() == [(1, 1.0), (4, 2.0)]
    assert plot("loss", found).lost == 2


def test_only_what_is_new_is_read_and_a_line_in_the_making_waits(tmp_path):
    path = tmp_path / "metrics.jsonl"
    curves = TrainingCurves(path)
    assert curves.read() == {}
    write(path, [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0, "rate": 1.0}])
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert {name: found.points() for name, found in curves.read().items()} == {
        "loss": [(1, 4.0), (2, 3.0)],
        "rate": [(2, 1.0)],
    }
    with path.open("a") as file:
        file.write('ss": 2.0}\n')
    assert curves.read()["loss"].points() == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert curves.read()["loss"].points() == [(1, 4.0), (2, 3.0), (3, 2.0)]


def test_a_file_that_a_resumed_run_replaced_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    curves = TrainingCurves(path)
    write(path, [{"step": step, "loss": 1.0} for step in range(1, 5)])
    curves.read()
    write(tmp_path / "new", [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 7.0}])
    os.replace(tmp_path / "new", path)
    assert curves.read()["loss"].points() == [(1, 1.0), (2, 7.0)]


@pytest.mark.parametrize(
    "line", ["", "[]", "{", '{"loss": 1.0}', '{"step": "x", "loss": 1}', '{"step": 1, "loss": []}']
)
def test_a_line_that_is_none_of_metrics_is_left_out(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": 2}}\n{line}\n{{"step": 3, "loss": 4}}\n')
    assert TrainingCurves(path).read()["loss"].points() == [(1, 2.0), (3, 4.0)]


def test_a_positive_loss_lies_on_a_logarithmic_axis_and_all_else_on_a_linear_one():
    values = [1.0, 10.0, 100.0]
    for name, expected in (("flow_loss", 0.5), ("accuracy", (10 - 1) / (100 - 1))):
        found = plot(name, curve_of(enumerate(values)))
        heights = [(FRAME.bottom - y) / (FRAME.bottom - FRAME.top) for _, y in coordinates(found)]
        assert heights == pytest.approx([0.0, expected, 1.0], abs=1e-3)  # coordinates have one decimal
    negative = plot("loss", curve_of([(0, -1.0), (1, 0.0), (2, 1.0)]))
    assert [y for _, y in coordinates(negative)] == pytest.approx([166, 88, 10])


@pytest.mark.parametrize(
    ("name", "low", "high", "labels"),
    [
        ("rate", 0.0, 1.0, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ("rate", -30.0, 55.0, ["-20", "0", "20", "40"]),
        ("rate", 0.0, 2e-4, ["0", "5e-05", "0.0001", "0.00015", "0.0002"]),
        ("loss", 1e-4, 1.0, ["0.0001", "0.001", "0.01", "0.1", "1"]),
        ("loss", 0.9, 40.0, ["1", "3", "10", "30"]),
        ("loss", 1.0, 1.2, ["1", "1.05", "1.1", "1.15", "1.2"]),
    ],
)
def test_the_marks_of_an_axis_are_round_numbers_at_their_places(name, low, high, labels):
    found = plot(name, curve_of([(0, low), (1, high)]))
    assert [tick.label for tick in found.values] == labels
    for tick in found.values:
        assert FRAME.top <= tick.position <= FRAME.bottom


@pytest.mark.parametrize("name", ["rate", "loss"])
@pytest.mark.parametrize("value", [1e-300, 1.0, 0.0, -3.0, 1e300])
def test_a_constant_and_a_single_point_can_be_drawn(name, value):
    for steps in ([5], [1, 2, 3]):
        found = plot(name, curve_of([(step, value) for step in steps]))
        assert found.end[1] == pytest.approx((FRAME.top + FRAME.bottom) / 2, abs=0.1)
        assert found.values
    assert (found.last_step, found.last) == (3, value)


def test_the_page_draws_every_curve_and_a_name_cannot_become_markup(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [{"step": step, "<b>loss</b>": 1 / step, "none": None} for step in range(1, 4)])
    page = report.render(
        "digits",
        "Running",
        settings={"preset": "ci", "seed": 0, "config": {}},
        environment={"started": ""},
        rows=[],
        pictures=[],
        notes=[],
        curves=TrainingCurves(path).plots(),
        reload=30,
    )
    assert page.count("<svg ") == page.count("<polyline ") == 1
    assert '&lt;b&gt;loss&lt;/b&gt; <span class="quiet">0.3333 at step 3</span>' in page
    assert '<meta http-equiv="refresh" content="30">' in page
    assert page.index("<h2>Training</h2>") < page.index("<h2>Settings</h2>")
