"""Commands of ``tools/`` as steps of a resumable job: each leaves its outcome in a folder and is not repeated."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.errors import InputError
from prompt_pretrain.pretrain import TrainingInterrupted

__all__ = ["ROOT", "Runner", "ToolRun", "repository_path", "run_side_by_side"]
ROOT = Path(__file__).resolve().parents[2]
_MARKER = "quickstart.json"
_ATTACHED = Path(__file__).with_name("attached.py")
_POLL_SECONDS = 0.5
_ITERATIONS_OF_OTHERS = 40  # what starting, evaluating and the like take, in iterations of a training
_INTERRUPTED = (130, -2, -15)  # by our own code, SIGINT, SIGTERM


@dataclass(frozen=True)
class ToolRun:
    """One command.

    Attributes:
        title: for people.
        script: relative to the repository.
        arguments: of the script.
        folder: what it writes to; removed when an earlier command with other arguments or inputs left it there.
        inputs: files whose content the outcome depends on.
        environment: variables beside those of this process.
        iterations: of the training; 0 for commands without one.
    """

    title: str
    script: str
    arguments: tuple[str, ...]
    folder: Path
    inputs: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    iterations: int = 0

    @property
    def command(self) -> str:
        """As one would type it."""
        words = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return " ".join([*words, "python", repository_path(self.script), *map(_quoted, self.arguments)])

    @property
    def results(self) -> dict[str, Any]:
        """Metrics that ``tools/train_net.py`` wrote, by data set."""
        return json.loads((self.folder / "results.json").read_text(encoding="utf-8"))

    @property
    def seconds(self) -> float:
        """How long it took, all the times that it was started, except those that ended with SIGKILL."""
        return _read(self.folder / _MARKER).get("seconds", 0.0)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The log of the training, a row every 20 iterations."""
        rows: dict[int, dict[str, Any]] = {}
        with suppress(OSError):
            for line in (self.folder / "metrics.json").read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # the end of a file that a killed process was writing
                    row = json.loads(line)
                    if "total_loss" in row:
                        rows[row["iteration"]] = row  # repeated after an interruption
        return [rows[number] for number in sorted(rows)]

    @property
    def done_iterations(self) -> int:
        rows = self.metrics if self.iterations else []
        return rows[-1]["iteration"] + 1 if rows else 0


class Runner:
    """Executes commands, or finds that they are done. Several threads may use it.

    Args:
        threads: that each command may use, where OMP_NUM_THREADS does not say it.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.stopped = threading.Event()
        self._processes: list[subprocess.Popen] = []

    def stop(self) -> None:
        """Start no further command; those at work save their state and end."""
        self.stopped.set()
        for process in self._processes:
            process.terminate()  # where Ctrl-C came from a terminal they know already, and take this as the same wish

    def run(self, step: ToolRun) -> None:
        """Do what is left of a command.

        Raises:
            InputError: the command failed; names the file with its output.
            TrainingInterrupted: it was asked to stop.
        """
        marker, settings = step.folder / _MARKER, _fingerprint(step)
        state = _read(marker)
        if state.get("settings") != settings:
            if step.folder.exists():
                shutil.rmtree(step.folder)
            state = {"settings": settings, "command": step.command, "seconds": 0.0, "done": False}
            write_json(marker, state)
        if state["done"]:
            return
        began = time.monotonic()
        try:
            self._execute(step)
            state["done"] = True
        finally:
            state["seconds"] += time.monotonic() - began
            write_json(marker, state)

    def _execute(self, step: ToolRun) -> None:
        if self.stopped.is_set():
            raise TrainingInterrupted("stopped; run the same command again to continue")
        words = [sys.executable, str(_ATTACHED), str(step.folder / "process.lock"), str(ROOT / step.script)]
        environment = {**os.environ, **step.environment}
        environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        log = step.folder / "output.txt"
        with open(log, "a", encoding="utf-8") as output:
            process = subprocess.Popen(
                [*words, *step.arguments], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=environment,
            )  # fmt: skip
            self._processes.append(process)
            if self.stopped.is_set():
                process.terminate()
            code = process.wait()
        if code in _INTERRUPTED or self.stopped.is_set():
            raise TrainingInterrupted("stopped; run the same command again to continue")
        if code:
            raise InputError(f"{step.title} failed with exit code {code}; see {log}: {_last_line(log)}")


def run_side_by_side(
    runner: Runner, chains: Sequence[Sequence[ToolRun]], *, jobs: int, show: Callable[[int, int, str], None]
) -> None:
    """Run chains of commands, ``jobs`` chains at a time; ``show`` is told of the progress meanwhile.

    The first failure, or Ctrl-C, stops all.

    Raises:
        InputError: a command failed.
        TrainingInterrupted: one was stopped.
    """
    failures: list[BaseException] = []
    waiting, started = list(chains), threading.Lock()

    def work() -> None:
        while True:
            with started:
                if not waiting or runner.stopped.is_set():
                    return
                chain = waiting.pop(0)
            try:
                for step in chain:
                    runner.run(step)
            except BaseException as error:
                failures.append(error)
                runner.stop()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            time.sleep(_POLL_SECONDS)
            _show_progress([step for chain in chains for step in chain], show)
    finally:
        runner.stop()
        for thread in threads:
            thread.join()
    if failures:
        # What was merely stopped says less than what made it stop.
        raise next((error for error in failures if not isinstance(error, TrainingInterrupted)), failures[0])


def _show_progress(steps: Sequence[ToolRun], show: Callable[[int, int, str], None]) -> None:
    """Iterations of trainings; an evaluation or a look at pictures counts as some."""
    done, at_work = 0, []
    for step in steps:
        state = _read(step.folder / _MARKER)
        if state.get("done"):
            done += step.iterations + _ITERATIONS_OF_OTHERS
        elif state:
            now = min(step.done_iterations, step.iterations)
            done += now
            name = step.folder.name.replace("_", " ")
            at_work.append(name if now == step.iterations else f"{name} {now}/{step.iterations}")
    show(done, sum(step.iterations + _ITERATIONS_OF_OTHERS for step in steps), ", ".join(at_work))


def repository_path(name: str) -> str:
    """A file of the repository, as a command names it: as it is where that finds it, else in full."""
    return name if Path(name).exists() else str(ROOT / name)


def _quoted(word: str) -> str:
    """For a shell, and for people: lists of names in double quotes."""
    return f'"{word}"' if "'" in word and not set('"$`\\!') & set(word) else shlex.quote(word)


def _fingerprint(step: ToolRun) -> str:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in step.inputs]
    content = [step.script, step.arguments, digests]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"
