"""Training numbers as JSON lines and TensorBoard events, consistent across resumed runs."""

import json
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from prompt_pretrain.atomic_files import atomic_writer

logger = logging.getLogger(__name__)


class MetricsLog:
    """Rows of numbers by step, in ``metrics.jsonl`` and as TensorBoard events.

    Each JSON line holds ``step`` (steps done), ``kind`` (``train``, ``epoch`` …) and the numbers given. Opening cuts
    off rows behind ``step``, which a run that continues from there will write again, and a half-written last line.
    A value that is not finite is written as null.

    Args:
        folder: the run's folder, made if needed.
        step: number of steps already done; 0 starts new files.
        tensorboard: also write events below ``tensorboard/``; without the package a line says so and nothing fails.
    """

    def __init__(self, folder: Path, *, step: int = 0, tensorboard: bool = True) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [line for line in _complete_lines(self.path) if _step_of(line) <= step] if step else []
        with atomic_writer(self.path, "w") as file:
            file.writelines(kept)
        self._file: IO[str] = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._events = _event_writer(folder / "tensorboard", step) if tensorboard else None

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Append one row and flush it to the operating system."""
        row = {"step": step, "kind": kind}
        row |= {name: None if _not_finite(value) else value for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``, all or those of one kind."""
    rows = [json.loads(line) for line in _complete_lines(path)]
    return [row for row in rows if kind is None or row.get("kind") == kind]


def drop_rows_from(path: Path, iteration: int) -> None:
    """Cut off what a run that continues at ``iteration`` will write again to detectron2's ``metrics.json``.

    In place, for a writer may have opened the file already.
    """
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _iteration_of(line) < iteration]
    if len(kept) == len(lines):
        return
    same = next((place for place, (old, new) in enumerate(zip(lines, kept, strict=False)) if old != new), len(kept))
    with path.open("r+b") as file:
        file.truncate(sum(map(len, lines[:same])))
        file.seek(0, 2)
        file.writelines(kept[same:])


def finite_or_none(results: Mapping[str, Any]) -> dict[str, Any]:
    """Nested numbers for JSON, which has no NaN, the value of a group without ground truth: None in its place."""
    return {
        name: finite_or_none(value) if isinstance(value, Mapping) else None if _not_finite(value) else value
        for name, value in results.items()
    }


def _iteration_of(line: bytes) -> float:
    """Infinite for a line that a killed process left unfinished."""
    try:
        iteration = json.loads(line)["iteration"]
        return iteration if isinstance(iteration, int | float) else math.inf
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf


def _complete_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            whole = isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            whole = False
        if whole:
            lines.append(line + "\n")
    return lines


def _step_of(line: str) -> int:
    step = json.loads(line).get("step")
    return step if isinstance(step, int) else sys.maxsize  # not one of ours: left out


def _not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning("tensorboard is not installed, so no events are written; pip install tensorboard for them")
        return None
    if not step:
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
