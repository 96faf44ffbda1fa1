"""What the simulations say of the claims: rows of the ledger from the errors of replicates."""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from experiments.claims import Cell
from experiments.multi_source import references
from experiments.multi_source.references import Setting
from experiments.run_directory import RunDirectory
from jaxgen.statistics.source_similarity import Similarity, estimated_similarity, predicted_ratio

if TYPE_CHECKING:
    from experiments.multi_source.sweeps import Sweeps

GROUPS = 20
"""Disjoint groups of replicates, whose means are the units of every test."""
ARMS = ("separate", "shared")
_FROM, _TO = 3, (10, 15)  # numbers of sources that similarity is estimated at, and that it predicts


def record(config: Any, run: RunDirectory, sweeps: "Sweeps", seconds: float) -> None:
    """Record every claim on the sweeps, with what was found and all that the figures show."""
    means = {setting: grouped(errors.exact) for setting, errors in sweeps.errors.items()}
    for claim, cells in {
        "A4": _slopes(means, "K", lambda of, shared: of.bound(shared=shared), skip=1),
        "A5": _slopes(means, "n", lambda of, shared: of.samples),
        "A6": _falls(means),
        "A6-flat": [_flat(sweeps)],
        "A6-slope": _slopes(means, "sim", lambda of, shared: of.bound(shared=shared))[1:],
        "A7": _advantages(means),
        "A8": _ratios(means),
        "A13": _expectations(sweeps),
        "A13-paper": _published(sweeps),
        "A15": _predictions(sweeps, means),
    }.items():
        run.record(claim, cells, seconds=seconds)
    _tell(config, run, sweeps)
    _keep(run, sweeps)


def grouped(errors: Float[np.ndarray, "replicates ..."]) -> Float[np.ndarray, "groups ..."]:
    """Return the means of disjoint groups of replicates, which differ in size by one at most."""
    return np.stack([part.mean(axis=0) for part in np.array_split(errors, GROUPS)])


def standard_errors(errors: Float[np.ndarray, "replicates 2"]) -> Float[np.ndarray, "2"]:
    """Return the standard error of the mean over replicates."""
    return errors.std(axis=0, ddof=1) / np.sqrt(len(errors))


def of_sweep(sweep: str) -> list[Setting]:
    """List the settings of a sweep."""
    return [setting for setting in references.settings() if setting.sweep == sweep]


def _slopes(means: dict, sweep: str, x: Callable[[Setting, bool], float], *, skip: int = 0) -> list[Cell]:
    """Make a cell of each arm, with a curve along the sweep from every group."""
    settings = of_sweep(sweep)[skip:]
    return [
        Cell(
            f"{arm}, {settings[0].name} to {settings[-1].value:g}",
            values=np.stack([means[setting][:, column] for setting in settings], axis=1),
            x=[x(setting, column == 1) for setting in settings],
        )
        for column, arm in enumerate(ARMS)
    ]


def _falls(means: dict) -> list[Cell]:
    """Compare the shared model at each similarity with the next, on the same random numbers."""
    settings = of_sweep("sim")
    return [
        Cell(f"{less.name} less {more.name}", values=means[less][:, 1], control=means[more][:, 1])
        for less, more in itertools.pairwise(settings)
    ]


def _flat(sweeps: "Sweeps") -> Cell:
    settings = of_sweep("sim")
    single = [sweeps.errors[setting].exact[:, 0].mean() for setting in settings]
    names = ", ".join(f"{setting.value:g}" for setting in settings[1:])
    return Cell(f"mean error at similarity {names} less that at 0", values=[mean - single[0] for mean in single[1:]])


def _advantages(means: dict) -> list[Cell]:
    """Compare 1 - shared / separate with that at the setting before: paired where both use the same random numbers."""
    cells = []
    for sweep in ("K", "sim"):
        settings = of_sweep(sweep)
        for before, setting in itertools.pairwise(settings):
            more, less = (1.0 - _ratio(means[of]) for of in (setting, before))
            name = f"{setting.name} over {before.name}"
            cells.append(Cell(name, values=more, control=less, paired=sweep == "sim"))
    return cells


def _ratios(means: dict) -> list[Cell]:
    """Hold the ratio of errors against that of the bounds, but where sharing does nothing and both are 1 exactly."""
    return [
        Cell(f"{setting.name}: ratio less {setting.ratio:.4f}", values=_ratio(mean) - setting.ratio)
        for setting, mean in means.items()
        if setting.ratio < 1
    ]


def _expectations(sweeps: "Sweeps") -> list[Cell]:
    """Hold the exact total variation against its expectation, and the paper's estimate of it against that itself.

    The mean of an estimate is that of the total variation of the same fits, whose own scatter is thus left out.
    """
    cells = []
    for setting, errors in sweeps.errors.items():
        exact, paper = grouped(errors.exact), grouped(errors.paper)
        for column, arm in enumerate(ARMS):
            known = sweeps.exact[setting][column]
            cells.append(Cell(f"{setting.name}, {arm}: mean / expectation", values=exact[:, column] / known))
            name = f"{setting.name}, {arm}: the paper's estimate / exact, of the same fits"
            cells.append(Cell(name, values=paper[:, column] / exact[:, column]))
    return cells


def _published(sweeps: "Sweeps") -> list[Cell]:
    """Count by how many standard errors of 5 seeds each published value lies off; the simulations tell the error."""
    cells = []
    for setting, row in references.published().items():
        errors = sweeps.errors[setting].paper
        scatter, relative = errors.std(axis=0, ddof=1), spread_error(errors)
        for column, (arm, value) in enumerate(zip(ARMS, (row.single, row.multi), strict=True)):
            off = abs(value - sweeps.exact[setting][column]) / (scatter[column] / np.sqrt(len(references.SEEDS)))
            cells.append(Cell(f"{setting.name}, {arm}", values=[off], error=3.0 * off * relative[column]))
    return cells


def spread_error(errors: Float[np.ndarray, "replicates 2"]) -> Float[np.ndarray, "2"]:
    """Return the relative standard error of the standard deviation, from the fourth moment: half that of the variance.

    Var(s^2) = (m4 - s^4) / R for R replicates.
    """
    centred = errors - errors.mean(axis=0)
    variance, fourth = (centred**2).mean(axis=0), (centred**4).mean(axis=0)
    return 0.5 * np.sqrt(np.maximum(fourth / variance**2 - 1.0, 0.0) / len(errors))


def _predictions(sweeps: "Sweeps", means: dict) -> list[Cell]:
    """Predict the ratio at many sources by the similarity that as large a group shows at few."""
    few, *many = (setting for setting in means if setting.sweep == "K" and setting.sources in (_FROM, *_TO))
    groups = np.array_split(sweeps.errors[few].exact, GROUPS)
    similarity = np.array([_similarity(group, draws=199).value for group in groups])  # fewest: no interval is read
    return [
        Cell(
            f"{setting.name}: predicted from {few.name} less measured",
            values=predicted_ratio(similarity, setting.sources) - _ratio(means[setting]),
        )
        for setting in many
    ]


def _similarity(errors: Float[np.ndarray, "units 2"], draws: int = 9_999) -> Similarity:
    return estimated_similarity(errors[:, 1], errors[:, 0], _FROM, seed=0, draws=draws)


def _ratio(means: Float[np.ndarray, "groups 2"]) -> Float[np.ndarray, " groups"]:
    return means[:, 1] / means[:, 0]


def _tell(config: Any, run: RunDirectory, sweeps: "Sweeps") -> None:
    rows = []
    for setting, errors in sweeps.errors.items():
        mean, known = errors.exact.mean(axis=0), sweeps.exact[setting]
        stderr = standard_errors(errors.exact)
        shown = (
            f"{arm} {mean[column]:.5f} +- {stderr[column]:.5f} (exact {known[column]:.5f})"
            for column, arm in enumerate(ARMS)
        )
        rows.append(f"{setting.name}: {', '.join(shown)}, ratio {mean[1] / mean[0]:.4f} (bounds {setting.ratio:.4f})")
    run.note(f"Total variation over {config.replicates:,} data sets of each setting. {'; '.join(rows)}.")
    base = of_sweep("K")[2]
    spreads = [sweeps.errors[base].exact.std(axis=0, ddof=1), sweeps.errors[base].paper.std(axis=0, ddof=1)]
    few = of_sweep("K")[1]
    found = _similarity(grouped(sweeps.errors[few].exact))
    predicted = ", ".join(f"{predicted_ratio(found.value, count):.4f} at K = {count}" for count in _TO)
    run.note(
        f"The errors at {few.name} show a similarity of {found.value:.4f} (95 % bootstrap interval {found.lower:.4f} "
        f"to {found.upper:.4f}), where the coordinates have {few.similarity:g} in common; it predicts the ratios "
        f"{predicted}."
    )
    unseen = sum(int((errors.unseen > 0).sum()) for errors in sweeps.errors.values())
    run.note(
        f"At {base.name} a replicate scatters by {spreads[0][0]:.4f} and {spreads[0][1]:.4f}, separate and shared; by "
        f"{spreads[1][0]:.4f} and {spreads[1][1]:.4f} where the total variation is estimated on {config.test_points} "
        "points, as the authors do. "
        f"{unseen} data sets left a source without a sample. With one source, or nothing in common, both arms are the "
        "same fit and A8 has no cell. The sweep over similarity uses the same random numbers throughout, the others "
        "none twice."
    )


def _keep(run: RunDirectory, sweeps: "Sweeps") -> None:
    settings, errors = list(sweeps.errors), list(sweeps.errors.values())
    base = sweeps.errors[of_sweep("K")[2]]
    run.arrays(
        sweep_base_exact=base.exact,
        sweep_base_paper=base.paper,
        sweep_settings=[setting.name for setting in settings],
        sweep_exact=np.stack([sweeps.exact[setting] for setting in settings]),
        sweep_mean=np.stack([of.exact.mean(axis=0) for of in errors]),
        sweep_stderr=np.stack([standard_errors(of.exact) for of in errors]),
        sweep_paper_mean=np.stack([of.paper.mean(axis=0) for of in errors]),
        sweep_paper_spread=np.stack([of.paper.std(axis=0, ddof=1) for of in errors]),
        sweep_bounds=[[setting.bound(shared=shared) for shared in (False, True)] for setting in settings],
        sweep_published=[[row.single, row.multi] for row in references.published().values()],
    )
