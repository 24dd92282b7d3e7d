"""Policies followed along training: one number per seed at each point of a path, as results.json holds it, and drawn.

paths[arm][measure][point] = [one number per seed]        point 0 is pi_0 itself
"""

from collections.abc import Sequence

from matplotlib.axes import Axes

from rlhf_lab.common.intervals import Interval, difference_interval, mean_interval

Path = dict[str, list[list[float]]]
DIGITS = 5


def collect(runs: Sequence[dict[str, list[dict[str, float]]]]) -> dict[str, Path]:
    """runs[seed][arm][point] = {measure: number}, turned to paths[arm][measure][point] = [number per seed].

    Raises ValueError if the seeds differ in arms or points.
    """
    shapes = [{arm: len(points) for arm, points in run.items()} for run in runs]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"every seed needs the same arms and points, got {shapes}")
    paths: dict[str, Path] = {}
    for arm, points in runs[0].items():
        paths[arm] = {measure: [] for measure in points[0]}
        for measure, path in paths[arm].items():
            for i in range(len(points)):
                path.append([round(run[arm][i][measure], DIGITS) for run in runs])
    return paths


def intervals(path: Path, measure: str) -> list[Interval]:
    """Mean over seeds with its interval, at each point."""
    return [mean_interval(values) for values in path[measure]]


def gain(path: Path, measure: str, point: int = -1, *, since: int = 0) -> Interval:
    """What the measure has changed by at `point` since another one (default: pi_0), seed by seed.

    Since the first epoch: over-training, if the whole interval is below zero.
    """
    return difference_interval(path[measure][point], path[measure][since])


def contrast(a: Path, b: Path, measure: str, point: int = -1, *, since: int | None = None) -> Interval:
    """a - b at a point, seed by seed; with `since`, what a has changed by since that point, minus what b has."""
    return difference_interval(_values(a[measure], point, since), _values(b[measure], point, since))


def _values(points: list[list[float]], point: int, since: int | None) -> list[float]:
    """One number per seed at `point`, or what it has changed by since another one."""
    if since is None:
        return points[point]
    return [now - then for now, then in zip(points[point], points[since], strict=True)]


def with_measure(path: Path, name: str, values: Sequence[float]) -> Path:
    """The path with one more measure, which is the same for all seeds: the epochs at its points, say."""
    seeds = len(next(iter(path.values()))[0])
    return path | {name: [[value] * seeds for value in values]}


def draw_path(
    ax: Axes, path: Path, x: str, y: str, colour: str, label: str, line: str = "o-", *, gained: bool = False
) -> None:
    """y against x along the path, both as means over seeds, with the interval of y at each point.

    gained: y minus its value at pi_0, seed by seed. Seeds differ in how hard their documents are, and this cancels it.
    """
    xs = [interval["mean"] for interval in intervals(path, x)]
    found = [gain(path, y, point) for point in range(len(xs))] if gained else intervals(path, y)
    for at, interval in zip(xs, found, strict=True):
        ax.plot([at, at], [interval["low"], interval["high"]], color=colour, linewidth=1, alpha=0.5, label="_interval")
    ax.plot(xs, [interval["mean"] for interval in found], line, color=colour, markersize=4, label=label)
