"""How long each step of a resumable job took, over all the times it was started."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prompt_pretrain.atomic_files import write_json


class Timings:
    """Seconds per named step, kept in a json file.

    A step that was interrupted goes on counting when it is taken up; one that is done keeps its time, however often it
    is passed through again. Killed by SIGKILL, a step forgets the time since it was last started.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps: dict[str, dict] = {}
        with suppress(OSError, ValueError, RecursionError):
            self._steps = _usable(json.loads(path.read_text(encoding="utf-8")))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure the block as a part, or all, of the step ``name``."""
        started = time.monotonic()
        done = False
        try:
            yield
            done = True
        finally:
            entry = self._steps.setdefault(name, {"seconds": 0.0, "done": False})
            if not entry["done"]:
                entry["seconds"] += time.monotonic() - started
                entry["done"] = done
                write_json(self._path, self._steps)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every step, in the order in which they were first taken."""
        return {name: entry["seconds"] for name, entry in self._steps.items()}


class Pace:
    """How long a job will still take, from what its steps were expected to take and from what they took.

    Args:
        expected: seconds of each step, more than 0, on some machine; only their proportions matter once steps are done.
    """

    def __init__(self, expected: Sequence[float]) -> None:
        self.expected = tuple(expected)
        self.done = 0
        self._took = self._was_expected = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """The block is the next step."""
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        if seconds > 0.1 * self.expected[self.done]:  # else it was done before and tells nothing of this machine
            self._took += seconds
            self._was_expected += self.expected[self.done]
        self.done += 1

    def remaining(self) -> float:
        """Seconds of the next step and all later ones."""
        slowness = self._took / self._was_expected if self._was_expected else 1.0
        return slowness * sum(self.expected[self.done :])


def _usable(content: Any) -> dict[str, dict]:
    """The steps of a file; times alone, so that what is damaged is measured again."""
    return {
        name: {"seconds": float(entry["seconds"]), "done": entry.get("done") is True}
        for name, entry in (content.items() if isinstance(content, dict) else ())
        if isinstance(entry, dict) and isinstance(entry.get("seconds"), int | float) and abs(entry["seconds"]) < 1e9
    }
