"""The grid of ShapeWorld experiments behind docs/RESULTS.md: prompts, K, local correction, sampling; several seeds."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from prompt_pretrain.atomic_files import atomic_writer, write_json
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.classification.class_features import ClassFeatureSource
from prompt_pretrain.errors import InputError
from prompt_pretrain.pretrain import Progress
from prompt_pretrain.prompt import load_prompt
from prompt_pretrain.report import Commands, Report, Table, Text
from prompt_pretrain.shapeworld_study import ENSEMBLE, HARD_PROMPT, PromptRun, Score, ShapeWorldStudy
from prompt_pretrain.templates import load_templates

BEGIN, END = "<!-- ShapeWorld results: begin -->", "<!-- ShapeWorld results: end -->"
SAMPLED = (16, 64, 256)
_K_OF_SAMPLING = 64
_MEASURES = ("base", "novel", "harmonic", "base_among_all", "novel_among_all")
_COLUMNS = ("base", "novel", "harmonic mean", "base among all", "novel among all")


@dataclass(frozen=True)
class Cell:
    """One row of a table: how a prompt is trained. ``texts`` instead: what stands there without training."""

    table: str
    name: str
    overrides: tuple[str, ...] = ()
    texts: str = ""

    def run(self, seed: int) -> PromptRun:
        return PromptRun(f"{self.table} {self.name}", self.overrides, seed)


def grid() -> list[Cell]:
    """All cells; the same setting stands in one table only."""

    def pomp(table: str, name: str, k: int | str, *more: str) -> Cell:
        return Cell(table, name, ("TRAINER.POMP.UPDATE_CLASS_NUM", str(k), *more))

    off = ("TRAINER.POMP.LOCAL_CORRECTION", "False")
    cells = [Cell("prompts", "hard prompt", texts=HARD_PROMPT), Cell("prompts", "80 templates", texts=ENSEMBLE)]
    cells += [pomp("contrast", f"K = {k}, log10 correction", k) for k in SAMPLED]
    cells += [pomp("contrast", f"K = {k}, no correction", k, *off) for k in SAMPLED]
    cells.append(pomp("contrast", f"K = {_K_OF_SAMPLING}, ln correction", _K_OF_SAMPLING, "TRAINER.POMP.MARGIN", "ln"))
    cells.append(pomp("contrast", "K = all", "all"))
    for mode in ("frequency", "similarity", "easy"):
        cells.append(pomp("sampling", mode, _K_OF_SAMPLING, "TRAINER.POMP.NEG_SAMPLING_MODE", mode))
    return cells


class ResultsGrid:
    """Trains and evaluates every cell with every seed, one json per result; what is there is not made again.

    Args:
        study: world and runs.
        seeds: of the training runs.
        cells: rows.
    """

    def __init__(self, study: ShapeWorldStudy, seeds: Sequence[int], cells: Sequence[Cell] | None = None) -> None:
        if not seeds:
            raise InputError("no seed given; give at least one")
        self.study, self.seeds = study, tuple(seeds)
        self.cells = list(grid() if cells is None else cells)
        for cell in self.cells:
            study.cfg(cell.run(self.seeds[0]))  # a wrong key fails before anything is drawn

    def jobs(self) -> list[tuple[Cell, int]]:
        """Every result there is to make: cells without training once, the others per seed, seed by seed."""
        fixed = [(cell, 0) for cell in self.cells if cell.texts]
        return fixed + [(cell, seed) for seed in self.seeds for cell in self.cells if not cell.texts]

    def result(self, cell: Cell, seed: int, progress: Progress | None = None) -> dict[str, Any]:
        """Score and seconds of one cell, from its file or made now."""
        path = self.study.folder / "cells" / f"{cell.run(seed).folder.replace('/', '-')}.json"
        settings = f"{self.study.settings(cell.run(seed))} {cell.texts}".strip()
        with suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.get("settings") == settings:
                return found
        started = time.monotonic()
        if cell.texts:
            source = ClassFeatureSource(cell.name, ClassTexts(templates=load_templates(cell.texts)))
            epoch = None
        else:
            trained = self.study.train(cell.run(seed), progress).result
            source = ClassFeatureSource(cell.name, ClassTexts(load_prompt(trained.best_prompt)))
            epoch = trained.best_epoch
        score = Score.of(self.study.compare([source]).rows[0])
        found = {
            "table": cell.table,
            "name": cell.name,
            "seed": seed,
            "settings": settings,
            "score": {**asdict(score), "harmonic": score.harmonic},
            "epoch": epoch,
            "seconds": time.monotonic() - started,
        }
        write_json(path, found)
        return found

    def run(self, announce: Callable[[str], None], progress: Progress | None = None) -> dict[str, list[dict[str, Any]]]:
        """All results by table and name ("table/name"), in the order of the cells."""
        found: dict[str, list[dict[str, Any]]] = {f"{cell.table}/{cell.name}": [] for cell in self.cells}
        jobs = self.jobs()
        for number, (cell, seed) in enumerate(jobs, start=1):
            result = self.result(cell, seed, progress)
            score = result["score"]
            label = cell.name + (f", seed {seed}" if seed else "")
            announce(f"[{number}/{len(jobs)}] {label}: base {score['base']:.2f}, novel {score['novel']:.2f}")
            found[f"{cell.table}/{cell.name}"].append(result)
        return found


def render(study: ShapeWorldStudy, seeds: Sequence[int], results: dict[str, list[dict[str, Any]]], command: str) -> str:
    """The Markdown section about ShapeWorld."""
    recipe, cfg = study.recipe, study.cfg(PromptRun("any", seed=seeds[0]))
    report = Report("ShapeWorld, classification")
    training = study.training_images(PromptRun("any", seed=seeds[0]))
    seconds = sum(result["seconds"] for rows in results.values() for result in rows)
    report.add(
        Text(
            f"{recipe.num_classes:,} base classes with {training:,} training images (long-tailed) and "
            f"{recipe.num_novel:,} novel classes, unseen combinations of seen attributes; {recipe.val_per_class} test "
            f"images of every class. CLIP: the tiny one (`{study.clip_name}`, {study.clip.clip_id}). "
            f"{cfg.OPTIM.MAX_EPOCH} epochs, batch {cfg.DATALOADER.TRAIN_X.BATCH_SIZE}, SGD {cfg.OPTIM.LR:g}, "
            f"{cfg.TRAINER.POMP.N_CTX} context vectors; the epoch is chosen on held-out training images."
        ),
        Text(
            f"Top-1 accuracy in percent, mean ± standard deviation over the seeds {', '.join(map(str, seeds))} of "
            "training (the test images stay the same). Base images are classified among the base classes, novel images "
            "among the novel ones; “among all” puts both kinds of classes together. Guessing at random gives "
            f"{100 / recipe.num_classes:.2f} and {100 / recipe.num_novel:.2f}."
        ),
        Commands([command]),
        Text(f"{seconds / 60:.0f} minutes of training and evaluation on {machine()}, without drawing and encoding."),
    )
    baselines = _rows(results, "prompts")
    report.section("Prompts")
    report.add(
        _table(
            [
                *baselines,
                *_named(results, {f"contrast/K = {_K_OF_SAMPLING}, log10 correction": f"POMP, K = {_K_OF_SAMPLING}"}),
                *_named(results, {"contrast/K = all": "POMP, K = all"}),
            ]
        )
    )
    report.section("Number of contrasted classes and local correction")
    report.add(_table(_rows(results, "contrast")))
    report.section(f"Sampling distribution, K = {_K_OF_SAMPLING}, log10 correction")
    uniform = _named(results, {f"contrast/K = {_K_OF_SAMPLING}, log10 correction": "uniform"})
    report.add(_table([*uniform, *_rows(results, "sampling")]))
    return report.markdown()


def write_section(path: str | os.PathLike, markdown: str, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Put ``markdown`` between the markers of the file at ``path``, or behind what it holds; make it if need be."""
    begin, end = markers
    path = Path(path)
    old = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    section = f"{begin}\n{_deeper(markdown).strip()}\n{end}"
    if begin in old and end in old:
        before, _, rest = old.partition(begin)
        new = before + section + rest.partition(end)[2]
    else:
        new = f"{old.rstrip()}\n\n{section}\n"
    with atomic_writer(path, "w") as file:
        file.write(new)


Row = tuple[str, list[dict[str, float]]]


def _rows(results: dict[str, list[dict[str, Any]]], table: str) -> list[Row]:
    return [
        (key.partition("/")[2], [result["score"] for result in rows])
        for key, rows in results.items()
        if key.partition("/")[0] == table
    ]


def _named(results: dict[str, list[dict[str, Any]]], names: dict[str, str]) -> list[Row]:
    return [(name, [result["score"] for result in results[key]]) for key, name in names.items() if key in results]


def _table(rows: Sequence[Row]) -> Table:
    cells = [
        [name, *(mean_and_deviation([score[measure] for score in scores]) for measure in _MEASURES)]
        for name, scores in rows
    ]
    return Table(["", *_COLUMNS], cells)


def mean_and_deviation(values: Sequence[float], digits: int = 2) -> str:
    """``mean ± standard deviation``, the number alone if there is one, – if there is none."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _deeper(markdown: str) -> str:
    """The same text one heading level further down."""
    return "\n".join("#" + line if line.startswith("#") else line for line in markdown.splitlines())


def machine() -> str:
    """The computer that numbers come from, for the document."""
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}"
