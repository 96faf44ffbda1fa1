"""The claims on autoregressive and energy-based models, judged from their errors, with what the reader should know."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.claims import Cell
from experiments.multi_source.convex import ConvexErrors
from experiments.multi_source.families import Family
from experiments.multi_source.network_kinds import Kind
from experiments.multi_source.networks import Curves
from experiments.run_directory import RunDirectory
from jaxgen.statistics.source_similarity import estimated_similarity, predicted_ratio

ARMS = "separate models", "shared model"
"""Both arms, in the order of every array of them."""


class Trained(NamedTuple):
    """Networks of one kind in both arms.

    Attributes:
        law: true log probabilities, by similarity, for the largest number of sources.
        separate: separate models, by similarity and number of sources; one run a seed.
        shared: the shared model, by the same.
    """

    law: Mapping[float, np.ndarray]
    separate: Mapping[tuple[float, int], Curves]
    shared: Mapping[tuple[float, int], Curves]


def record_convex(run: RunDirectory, family: Family, letter: str, errors: ConvexErrors, seconds: float) -> None:
    """A9 and A10, with their order: the errors over their predictions, and how their ratio falls with K."""
    relative = errors.measured.mean(axis=-1) / errors.predicted
    cells = [
        Cell(f"K = {count}, {arm}", values=relative[column, number])
        for number, count in enumerate(errors.sources)
        for column, arm in enumerate(ARMS)
    ]
    run.record(letter, cells, seconds=seconds)
    ratios = [errors.ratio(number) for number in range(len(errors.sources))]
    steps = list(zip(errors.sources[:-1], errors.sources[1:], ratios[:-1], ratios[1:], strict=True))
    cells = [Cell(f"K = {few} against {many}", values=less, control=more) for few, many, less, more in steps]
    run.record(f"{letter}-order", cells, seconds=seconds)
    laws = errors.predicted[1] / errors.predicted[0]
    shown = "; ".join(
        f"K = {count}: {ratio.mean():.3f} found, {law.mean():.3f} by the delta method, "
        f"{family.rank_ratio(count):.3f} by counting parameters"
        for count, ratio, law in zip(errors.sources, ratios, laws, strict=True)
    )
    truths, replicates = errors.measured.shape[2:]
    run.note(
        f"Convex {family.name} models, {truths} laws with {replicates} data sets each of n = {family.samples}. Error "
        f"of the shared model over that of separate ones: {shown}. Counting parameters takes all directions to move "
        f"the law alike. The largest gradient that a fit ended with is {errors.gradient:.1g}.{_cut(errors)}"
    )
    run.arrays(
        **{
            f"convex_{family.name}_{name}": array
            for name, array in {
                "sources": errors.sources,
                "measured": errors.measured,
                "predicted": errors.predicted,
                "rank_ratio": [family.rank_ratio(count) for count in errors.sources],
            }.items()
        }
    )


def _cut(errors: ConvexErrors) -> str:
    """Tell of the fits that could not end, where there are any."""
    if not errors.unattained:
        return ""
    return (
        f" But for {errors.unattained} of {errors.measured.size} fits, which were cut after 100 steps and count as "
        "they were left: no parameters attain the maximum where all samples of a source lie on the edge of what the "
        "features can tell."
    )


def record_prediction(run: RunDirectory, convex: Mapping[str, ConvexErrors], seconds: float) -> None:
    """A15-models: the similarity that the errors at the fewest sources tell predicts the ratio at the most."""
    cells, shown = [], []
    for name, errors in convex.items():
        few, many = errors.sources[0], errors.sources[-1]
        pairs = [errors.measured[:, 0, truth] for truth in range(errors.measured.shape[2])]
        similarity = [estimated_similarity(shared, alone, few, seed=run.seed, draws=999) for alone, shared in pairs]
        predicted = predicted_ratio(np.array([of.value for of in similarity]), many)
        found = errors.ratio(len(errors.sources) - 1)
        cells.append(Cell(f"{name}, K = {many} from K = {few}", values=found - predicted))
        alone, shared = (errors.measured[arm, 0].reshape(-1) for arm in (0, 1))
        whole = estimated_similarity(shared, alone, few, seed=run.seed)
        law = errors.predicted[1] / errors.predicted[0]
        limit = law[-1] - predicted_ratio((1 - law[0] ** 2) * few / (few - 1), many)
        shown.append(
            f"{name}: {whole.value:.3f} ({whole.lower:.3f} to {whole.upper:.3f}) at K = {few}, so a ratio of "
            f"{predicted_ratio(whole.value, many):.3f} at K = {many}, and {found.mean():.3f} found; the delta method "
            f"itself misses by {limit.mean():+.3f}"
        )
    run.record("A15-models", cells, seconds=seconds)
    run.note(
        "Similarity estimated from the errors of all laws, with the bootstrap interval over data sets, laws given. "
        f"{'. '.join(shown)}."
    )


def record_networks(run: RunDirectory, kind: Kind, letter: str, trained: Trained, seconds: float) -> None:
    """A9-networks and A10-networks: the errors at the end of training, paired by seed."""
    cells = [
        Cell(
            f"similarity {similarity:g}, K = {count}",
            values=trained.separate[similarity, count].tv[:, -1],
            control=of.tv[:, -1],
        )
        for (similarity, count), of in trained.shared.items()
    ]
    run.record(f"{letter}-networks", cells, seconds=seconds)
    run.note(_networks_note(kind, trained))
    for arm in ("separate", "shared"):
        curves = getattr(trained, arm)
        run.arrays(
            **{f"network_{kind.name}_{arm}_tv": np.stack([of.tv for of in curves.values()])},
            **{f"network_{kind.name}_{arm}_loss": np.stack([of.loss for of in curves.values()])},
        )
    first = next(iter(trained.shared.values()))
    run.arrays(
        **{
            f"network_{kind.name}_steps": first.steps,
            f"network_{kind.name}_similarity": [similarity for similarity, _ in trained.shared],
            f"network_{kind.name}_sources": [count for _, count in trained.shared],
        }
    )


def _networks_note(kind: Kind, trained: Trained) -> str:
    """Tell the errors at the end, and at the best look of each arm, which no data could have chosen."""
    rows, risen, gained = [], {"separate": 0, "shared": 0}, {1: 0, -1: 0}
    for pair, shared in trained.shared.items():
        arms = {"separate": trained.separate[pair].tv, "shared": shared.tv}
        best = {name: errors[:, errors.mean(axis=0).argmin()] for name, errors in arms.items()}
        for name, errors in arms.items():
            risen[name] += _sign(errors[:, -1] - best[name]) > 0
        if found := _sign(best["separate"] - best["shared"]):
            gained[found] += 1
        ends = ", ".join(f"{name} {arms[name][:, -1].mean():.3f}, at best {best[name].mean():.3f}" for name in arms)
        rows.append(f"similarity {pair[0]:g}, K = {pair[1]}: {ends}")
    first = next(iter(trained.shared.values()))
    return (
        f"Networks, {kind.name}, n = {kind.samples}: mean error after {first.steps[-1]} steps, and at the best of the "
        f"steps that were looked at: {'; '.join(rows)}. By more than two standard errors over {len(first.tv)} seeds, "
        f"separate models end above their best in {risen['separate']} of {len(rows)} settings, the shared model in "
        f"{risen['shared']}: what stopping early would gain is no gain of sharing. Each at its best, the shared model "
        f"is better in {gained[1]} settings and worse in {gained[-1]}. At similarity 0 the sources have nothing in "
        "common but the kind of their laws."
    )


def _sign(values: np.ndarray) -> int:
    """Return the sign of a mean over seeds that is more than two standard errors from 0, and 0 else."""
    mean, stderr = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    return int(np.sign(mean)) if abs(mean) > 2 * stderr else 0
