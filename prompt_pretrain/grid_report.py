"""A finished grid as a table, a plot and plain values."""

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from prompt_pretrain.classification.evaluation import harmonic_mean
from prompt_pretrain.grid_runner import Results
from prompt_pretrain.grids import Grid
from prompt_pretrain.plots import Curve, plot_curves, plot_grouped_bars
from prompt_pretrain.report import Table
from prompt_pretrain.shapeworld_results import mean_and_deviation

_BASE_AND_NOVEL = ("base", "novel")


def scores_of(results: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Column -> accuracies over the seeds; with base and novel classes their harmonic mean too, seed by seed."""
    scores: dict[str, list[float]] = {}
    for result in results:
        accuracy = dict(result["accuracy"])
        if set(accuracy) == set(_BASE_AND_NOVEL):
            both = [accuracy[name] for name in _BASE_AND_NOVEL]
            accuracy["harmonic mean"] = None if None in both else harmonic_mean(*both)
        for column, value in accuracy.items():
            scores.setdefault(column, []).extend([] if value is None else [value])
    return scores


def grid_table(grid: Grid, results: Results) -> Table:
    """Mean ± standard deviation over the seeds, with the paper's numbers beside."""
    columns = list(dict.fromkeys(column for rows in results.values() for column in scores_of(rows)))
    with_paper = any(row.paper for row in grid.rows)
    head = ["", *columns, *(["seconds", "memory, MB"] if grid.costs else []), *(["paper"] if with_paper else [])]
    lines, seen = [], set()
    for row in grid.rows:
        if row.name in seen:
            continue
        seen.add(row.name)
        scores = scores_of(results[row.name])
        cells = [row.name, *(mean_and_deviation(scores.get(column, [])) for column in columns)]
        if grid.costs:
            trained = [result for result in results[row.name] if "seconds" in result]
            cells.append(mean_and_deviation([result["seconds"] for result in trained], digits=0))
            cells.append(mean_and_deviation([1000 * result["memory_gb"] for result in trained], digits=0))
        lines.append([*cells, row.paper or "–"] if with_paper else cells)
    caption = f"The paper's column: {grid.paper_columns}." if with_paper else ""
    return Table(head, lines, caption)


def grid_figure(grid: Grid, results: Results) -> Figure:
    """Curves over what the grid varies, or bars by row."""
    means = {
        row.name: {column: statistics.mean(values) for column, values in scores_of(results[row.name]).items() if values}
        for row in grid.rows
    }
    if not grid.xlabel:
        spread = {
            row.name: {
                column: statistics.stdev(values)
                for column, values in scores_of(results[row.name]).items()
                if len(values) > 1
            }
            for row in grid.rows
        }
        return plot_grouped_bars(means, title=grid.title, errors=spread)
    columns = list(next(iter(means.values())))
    curves = []
    for series in dict.fromkeys(row.series for row in grid.rows):
        rows = [row for row in grid.rows if row.series == series]
        for column in columns:
            curves.append(Curve(f"{series}, {column}", [row.x for row in rows], [means[r.name][column] for r in rows]))
    return plot_curves(curves, title=grid.title, xlabel=grid.xlabel, ylabel="top-1 accuracy (%)")
