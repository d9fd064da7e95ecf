"""Running trainings in processes of their own, disturbing and measuring them."""

import importlib
import multiprocessing
import os
import platform
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from soaking.disturbances import DataFolder, FullDisk, damage_file, damage_images, empty
from soaking.tasks import Task
from torch import Tensor

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

_TRACEBACK = "Traceback (most recent call last)"
_POLL = 0.05  # seconds
_AWAY = 1.5  # seconds that data are gone or a disk is full
_DISTURBANCES = 6  # of one training; then it is left alone, so that it ends
_DISK_BYTES = 1 << 30
_SMALL_FILE = 1 << 12  # where no disk can be mounted: no file may become larger, so no checkpoint can be written
_MAX_SECONDS = 900.0  # of one process, and one more for each of its steps
_MAX_GROWTH_MB = 64.0  # of resident memory between the second and the last quarter of a process's time
_SETTLED = 60.0  # seconds below which growth is that of starting up
_MAX_OPEN_FILES = 256


@dataclass
class Training:
    """What is known of one training, over all the times it was started."""

    task: str
    disturbed: bool
    starts: int = 0
    seconds: float = 0.0
    equal: bool | None = None
    disturbances: Counter[str] = field(default_factory=Counter)
    rss_mb: list[float] = field(default_factory=list)  # of the process that lived longest
    rss_peak_mb: float = 0.0
    open_files_peak: int = 0
    exit_codes: Counter[int] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        quarter = max(1, len(self.rss_mb) // 4)
        return {
            "task": self.task + ("" if self.disturbed else " (undisturbed)"),
            "seconds": self.seconds,
            "starts": self.starts,
            "equal": self.equal,
            "disturbances": dict(self.disturbances),
            "exit_codes": {str(code): count for code, count in self.exit_codes.items()},
            "rss_first_mb": statistics.median(self.rss_mb[quarter : 2 * quarter] or self.rss_mb or [0.0]),
            "rss_last_mb": statistics.median(self.rss_mb[-quarter:] or [0.0]),
            "rss_peak_mb": self.rss_peak_mb,
            "open_files_peak": self.open_files_peak,
            "rss_over_time_mb": self.rss_mb[:: max(1, len(self.rss_mb) // 100)],
        }


class Soak:
    """Trainings in turn, each alone and disturbed, until the time is over.

    Args:
        folder: of the data and the runs; runs of an earlier soak in it are removed.
        kinds: disturbances to draw from.
        steps: of a training.
        seed: of the disturbances and of the damage to images.
        speak: takes lines about the progress.
        save: takes the report so far, a dict for json, after each pair of trainings.
    """

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[Task],
        *,
        kinds: Sequence[str],
        steps: int,
        seed: int,
        speak: Callable[[str], None],
        save: Callable[[dict[str, Any]], None],
    ) -> None:
        self.folder = folder.resolve()
        self.tasks, self.kinds, self.steps, self.seed = list(tasks), list(kinds), steps, seed
        self.speak, self.save = speak, save
        self.rng = random.Random(seed)
        self.problems: list[str] = []
        self.trainings: list[Training] = []

    def run(self, seconds: float) -> dict[str, Any]:
        """The report in the end: a dict for json."""
        torch.set_num_threads(1)  # threads that have been used here would leave forked processes waiting for them
        for task in self.tasks:
            importlib.import_module(task.module)
        started = time.monotonic()
        with _OwnDisk(self.folder / "runs") as disk:
            while True:
                for task in self.tasks:
                    self._pair(task, disk)
                    report = self._report(time.monotonic() - started, disk)
                    self.save(report)
                    if report["seconds"] >= seconds:
                        return report

    def _pair(self, task: Task, disk: "_OwnDisk") -> None:
        """One training alone and the same one disturbed."""
        data = DataFolder(self.folder / "data" / task.name)
        if not data.path.exists():
            self.speak(f"{task.name}: drawing")
            unfinished = empty(data.path.with_name(f"{task.name}.unfinished"))
            task.draw(unfinished)
            damage_images(unfinished, task.images, self.rng)
            unfinished.rename(data.path)
        alone, disturbed = (empty(disk.folder / task.name / name) for name in ("alone", "disturbed"))
        expected = Training(task.name, disturbed=False)
        found = Training(task.name, disturbed=True)
        self.trainings += [expected, found]
        if self._train(task, data, alone, expected, disk):
            weights = task.weights(alone)
            empty(alone)  # the disk is small
            if self._train(task, data, disturbed, found, disk):
                self._compare(task, weights, task.weights(disturbed), found)
        shutil.rmtree(disk.folder / task.name)
        self.speak(
            f"{task.name}: {found.starts} starts, disturbances {dict(found.disturbances)}, equal weights: {found.equal}"
        )

    def _compare(self, task: Task, one: dict[str, Tensor], other: dict[str, Tensor], found: Training) -> None:
        wrong = [name for name in one if name not in other or not one[name].equal(other[name])]
        found.equal = not wrong and one.keys() == other.keys()
        if not found.equal:
            self.problems.append(f"{task.name}: final weights differ from the undisturbed training's: {wrong[:3]}")

    def _train(self, task: Task, data: DataFolder, run: Path, training: Training, disk: "_OwnDisk") -> bool:
        """Start the training until it ends well. False if it never does."""
        step: int | None = None
        failures = 0
        while failures < 4:
            kind = self._draw(training)
            code, kind = self._process(task, data, run, training, disk, kind)
            data.restore()
            disk.restore()
            training.exit_codes[code] += 1
            if code == 0:
                return True
            failures += 0 if kind else 1
            if code not in (-signal.SIGKILL, 1, 2) or (kind is None and code != 0):
                self.problems.append(f"{task.name}: exit code {code} without a disturbance that explains it")
            step = self._check_checkpoints(task, run, training, step, kind)
        self.problems.append(f"{task.name}: does not end, see {self.folder}")
        return False

    def _draw(self, training: Training) -> str | None:
        """What happens to it next; None once it has had its share."""
        left = _DISTURBANCES - training.disturbances.total() if training.disturbed else 0
        return self.rng.choice(self.kinds) if left > 0 else None

    def _check_checkpoints(
        self, task: Task, run: Path, training: Training, before: int | None, kind: str | None
    ) -> int | None:
        """The step that the run can be continued from, which may never be an earlier one than before."""
        step = task.last_step(run)
        if before is not None and (step is None or step < before):
            self.problems.append(f"{task.name}: a checkpoint of step {before} is lost, the newest is of step {step}")
        files = task.checkpoints(run)
        if kind == "damaged_checkpoint" and len(files) > 1:
            damage_file(files[-1], self.rng)
            training.disturbances[kind] += 1
            return task.last_step(run)
        return step

    def _process(
        self, task: Task, data: DataFolder, run: Path, training: Training, disk: "_OwnDisk", kind: str | None
    ) -> tuple[int, str | None]:
        """One process of the training, disturbed until it ends: its exit code and the last disturbance."""
        log = self.folder / f"{task.name}_{run.name}.txt"  # not on the disk that is filled
        start_of_log = log.stat().st_size if log.exists() else 0
        limited = kind == "disk_full" and not disk.is_mounted
        main, arguments = task.command(data.path, run, self.steps)
        process = multiprocessing.get_context("fork").Process(target=_work, args=(main, arguments, log, limited))
        process.start()
        training.starts += 1
        started = time.monotonic()
        if limited:
            training.disturbances["disk_full"] += 1
        # Times are drawn from those of a whole run, so that disturbances meet every phase of it.
        whole = next((t.seconds for t in reversed(self.trainings) if t.task == task.name and not t.disturbed), 10.0)
        at = self._next(whole) if kind and not limited else float("inf")
        until = float("inf")
        watch = _Watch(process)
        while process.is_alive():
            process.join(_POLL)
            watch.measure()
            now = time.monotonic()
            if now >= at:
                at = float("inf")
                until = self._disturb(kind, process, data, disk, training)
            if now >= until:
                until = float("inf")
                data.restore()
                disk.restore()
                following = self._draw(training)  # for one that survives this, too
                if following and (following != "disk_full" or disk.is_mounted):
                    kind, at = following, self._next(whole)
            if now - started > _MAX_SECONDS + self.steps:
                self.problems.append(f"{task.name}: a process hung for {now - started:.0f} seconds")
                process.kill()
        training.seconds += time.monotonic() - started
        self._note(task, training, watch, log, start_of_log)
        return process.exitcode or 0, kind

    def _next(self, whole: float) -> float:
        """When to disturb, on the clock, a process whose undisturbed run takes ``whole`` seconds."""
        return time.monotonic() + self.rng.uniform(0.2, 0.9) * whole / 2

    def _disturb(
        self, kind: str | None, process: BaseProcess, data: DataFolder, disk: "_OwnDisk", training: Training
    ) -> float:
        """Do it; when it has to be undone."""
        if kind in ("kill", "damaged_checkpoint"):
            process.kill()
            training.disturbances["kill"] += 1
            return float("inf")
        training.disturbances[kind or ""] += 1
        if kind == "data_gone":
            data.vanish()
        else:
            disk.fill()
        return time.monotonic() + _AWAY

    def _note(self, task: Task, training: Training, watch: "_Watch", log: Path, start_of_log: int) -> None:
        if len(watch.rss_mb) > len(training.rss_mb):
            training.rss_mb = watch.rss_mb
        training.rss_peak_mb = max(training.rss_peak_mb, *watch.rss_mb, 0.0)
        training.open_files_peak = max(training.open_files_peak, watch.open_files)
        quarter = len(watch.rss_mb) // 4
        if watch.seconds >= _SETTLED:
            growth = statistics.median(watch.rss_mb[-quarter:]) - statistics.median(watch.rss_mb[quarter : 2 * quarter])
            if growth > _MAX_GROWTH_MB:
                self.problems.append(f"{task.name}: memory grew by {growth:.0f} MB while training")
        if watch.open_files > _MAX_OPEN_FILES:
            self.problems.append(f"{task.name}: {watch.open_files} files were open at once")
        text = log.read_bytes()[start_of_log:].decode("utf-8", "replace")
        # Python's logging says so, in more lines, where it cannot write to log.txt on a full disk, and goes on.
        text = text.replace(f"--- Logging error ---\n{_TRACEBACK}", "")
        if _TRACEBACK in text:
            kept = self.folder / f"traceback_{len(self.problems)}.txt"
            kept.write_text(text, encoding="utf-8")
            self.problems.append(f"{task.name}: ended in a traceback, see {kept}")

    def _report(self, seconds: float, disk: "_OwnDisk") -> dict[str, Any]:
        return {
            "seconds": seconds,
            "seed": self.seed,
            "steps": self.steps,
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
            "disk": "a tmpfs that is filled up" if disk.is_mounted else "a limit on file sizes",
            "trainings": [training.as_json() for training in self.trainings],
            "problems": self.problems,
        }


def _work(main: Callable[[Sequence[str]], int], arguments: list[str], log: Path, limited: bool) -> None:
    """In the process of a training."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    if limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (_SMALL_FILE, resource.RLIM_INFINITY))
    code = run_command(main, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Watch:
    """Resident memory and open files of a process."""

    def __init__(self, process: BaseProcess) -> None:
        self._folder = Path("/proc") / str(process.pid)
        self.rss_mb: list[float] = []
        self.open_files = 0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the process was started."""
        return time.monotonic() - self._started

    def measure(self) -> None:
        try:
            pages = int((self._folder / "statm").read_text().split()[1])
            self.open_files = max(self.open_files, len(os.listdir(self._folder / "fd")))
        except (OSError, IndexError):
            return  # it has just ended, or this system has no such folder
        if pages:
            self.rss_mb.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


class _OwnDisk:
    """A folder on a file system of its own where that can be had, so that it can be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_mounted = False
        self._full: FullDisk | None = None

    def __enter__(self) -> "_OwnDisk":
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()) and not (self.folder / ".soak").exists():
            raise InputError(f"{self.folder} holds files that are none of a soak; choose another --output")
        command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(self.folder)]
        may_mount = hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("mount") is not None
        self.is_mounted = may_mount and subprocess.run(command, capture_output=True, check=False).returncode == 0
        if not self.is_mounted:
            empty(self.folder)
        (self.folder / ".soak").touch()
        self._full = FullDisk(self.folder) if self.is_mounted else None
        return self

    def fill(self) -> None:
        if self._full is not None:
            self._full.fill()

    def restore(self) -> None:
        if self._full is not None:
            self._full.restore()

    def __exit__(self, *exception: object) -> None:
        if self.is_mounted:
            subprocess.run(["umount", str(self.folder)], capture_output=True, check=False)
