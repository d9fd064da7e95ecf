"""The runs of a ShapeWorld study: each is one ``tools/train_net.py`` process whose result stays in its folder.

So an interrupted study goes on where it was, and runs can go side by side.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from prompt_pretrain.atomic_files import atomic_writer, write_json
from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld_results import mean_and_deviation

__all__ = ["StudyRuns", "result_row"]
_REPOSITORY = Path(__file__).resolve().parents[1]
_TRAIN_NET = _REPOSITORY / "tools" / "train_net.py"
Metrics = dict[str, dict[str, float]]


class _Run(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...


RunT = TypeVar("RunT", bound=_Run)


class StudyRuns(ABC, Generic[RunT]):
    """A folder with data sets and the runs made on them.

    Args:
        folder: where everything goes.
        overrides: ``KEY VALUE`` pairs for all runs.

    Attributes:
        runs: all that the study has, each behind those that it needs.
    """

    runs: Sequence[RunT]

    def __init__(self, folder: str | os.PathLike, overrides: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        self.overrides = tuple(overrides)

    @property
    def data(self) -> Path:
        """What ``DETECTRON2_DATASETS`` has to name."""
        return self.folder / "datasets"

    @abstractmethod
    def command(self, run: RunT, seed: int) -> list[str]:
        """Arguments of ``tools/train_net.py``."""

    @abstractmethod
    def needed(self, run: RunT) -> list[str]:
        """Names of the runs that come before this one."""

    @abstractmethod
    def described(self, run: RunT, seed: int) -> list[Any]:
        """What the result depends on, beside the runs that come before; for json."""

    @abstractmethod
    def shown_metrics(self, data_set: str, tasks: Mapping[str, Any]) -> dict[str, float]:
        """What the tables show of the results on one data set."""

    def prepare(self, run: RunT, seed: int) -> None:
        """Make the files that the command names."""

    def summary(self, results: Metrics) -> str:
        """One line about a result: the first data set."""
        return ", ".join(f"{key} {value:.1f}" for key, value in next(iter(results.values())).items())

    def run_all(
        self, seeds: Sequence[int], *, jobs: int = 1, announce: Callable[[str], None] = print
    ) -> dict[str, list[dict[str, Any]]]:
        """Every run with every seed; the data come before.

        Args:
            jobs: runs side by side.
        Returns:
            Run name -> one entry per seed: ``results`` (data set -> metric in percent), ``seconds``.
        Raises:
            InputError: no seed, or a run failed.
        """
        if not seeds:
            raise InputError("no seed given; give at least one")
        waiting: dict[tuple[str, int], Future[dict[str, Any]]] = {}
        with ThreadPoolExecutor(jobs) as pool:

            def after_others(run: RunT, seed: int) -> dict[str, Any]:
                for name in self.needed(run):  # were submitted before, so they are done or at work
                    if (name, seed) in waiting:
                        waiting[name, seed].result()
                return self.result(run, seed, announce)

            for seed in seeds:
                for run in self.runs:
                    waiting[run.name, seed] = pool.submit(after_others, run, seed)
            return {run.name: [waiting[run.name, seed].result() for seed in seeds] for run in self.runs}

    def result(self, run: RunT, seed: int, announce: Callable[[str], None] = print) -> dict[str, Any]:
        """Metrics of one run, from its file or made now.

        Raises:
            InputError: the run failed; names its output.
        """
        folder, settings = self.run_folder(run.name, seed), self.settings(run, seed)
        path = folder / "study.json"
        with suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.get("settings") == settings:
                return found
        began = time.monotonic()
        marker = folder / "settings.txt"
        if folder.exists() and not (marker.is_file() and marker.read_text(encoding="utf-8") == settings):
            shutil.rmtree(folder)  # what other settings left there must not be taken up
        with atomic_writer(marker, "w") as file:
            file.write(settings)
        self.prepare(run, seed)
        self.execute(run, seed)
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        results = {name: self.shown_metrics(name, tasks) for name, tasks in content.items()}
        found = {"settings": settings, "results": results, "seconds": time.monotonic() - began}
        write_json(path, found)
        announce(f"seed {seed}, {run.name}: {self.summary(results)} ({found['seconds']:.0f} s)")
        return found

    def run_folder(self, name: str, seed: int) -> Path:
        return self.folder / "runs" / f"seed{seed}" / name

    def execute(self, run: RunT, seed: int) -> None:
        """Do the run; its output goes to ``output.txt`` in its folder.

        Raises:
            InputError: it failed.
        """
        words = [sys.executable, str(_TRAIN_NET), *self.command(run, seed)]
        environment = {**os.environ, "DETECTRON2_DATASETS": str(self.data)}
        environment.setdefault("OMP_NUM_THREADS", "1")
        with open(self.run_folder(run.name, seed) / "output.txt", "w", encoding="utf-8") as output:
            output.write(shlex.join(words) + "\n")
            output.flush()
            done = subprocess.run(
                words, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=_REPOSITORY, check=False
            )
        if done.returncode:
            raise InputError(f"{run.name} with seed {seed} failed with exit code {done.returncode}; see {output.name}")

    def settings(self, run: RunT, seed: int) -> str:
        """Hash of what the result depends on."""
        content = [*self.described(run, seed), *(self.settings(self._named(name), seed) for name in self.needed(run))]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def _named(self, name: str) -> RunT:
        return next(run for run in self.runs if run.name == name)


def result_row(run: _Run, of_seeds: Sequence[Mapping[str, Any]], data_set: str, columns: Sequence[str]) -> list[str]:
    """The line of a table: title, then mean ± deviation over the seeds of each column.

    Raises:
        InputError: a run has no results of the data set.
    """
    for result in of_seeds:
        if data_set not in result["results"]:
            found = ", ".join(result["results"])
            raise InputError(f"{run.name} has no results of {data_set}, only of {found}; delete the study's runs")
    found_rows = [result["results"][data_set] for result in of_seeds]
    return [run.title, *(mean_and_deviation([metrics[column] for metrics in found_rows], 1) for column in columns)]
