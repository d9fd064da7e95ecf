"""Processes of a run that notice when one of them is gone, and say which one, in which step and doing what.

A process that dies leaves the others in a collective call: over gloo they get an error that names no process, over NCCL
they wait for half an hour. Here each one tells the others through a key-value store of torch.distributed where it is,
and a thread looks after the others. It works alike under ``launch`` and ``torchrun`` and for every backend.
"""

import json
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch import nn

from prompt_pretrain import distributed
from prompt_pretrain.errors import LostProcessError

__all__ = ["ProcessWatch", "watched_evaluation"]

logger = logging.getLogger(__name__)

# Errors by which a collective call reports that another process is gone or does not answer.
_BROKEN_CONNECTION = re.compile(r"gloo|nccl|connection|socket|timed out|timeout|store|broken pipe|recv", re.IGNORECASE)
_EVALUATION = "evaluation"
_SILENCE_OF_METRICS = 1800.0  # seconds; compiled code that computes a metric may let no other thread run for long
_RUNNING, _FAILED, _LEAVING, _DONE = "running", "failed", "leaving", "done"


class ProcessWatch:
    """Context of the part of a run in which all processes work together; nothing happens with a single process.

    Entering and leaving it without an error are collective calls. A process that leaves it by an error of its own tells
    the others. They get a :class:`LostProcessError` in its place: from the collective call that fails, from their next
    `at`, or, where they hang in a call that does not return, as the last line before they exit with status 1.

    Args:
        advice: how to go on, the end of the message.
        orderly: exceptions by which all processes leave together, such as after a signal.
        interval: seconds between two looks at the others.
        silence: seconds without any sign of a process on another machine after which it counts as gone. Those on this
            machine are looked up in the process table.
        patience: seconds after which a process that hangs ends itself; also how long the reason of a broken connection
            is looked for.
        stalled: seconds without progress of any process after which a warning says where each of them is.
    """

    def __init__(
        self,
        advice: str,
        *,
        orderly: tuple[type[BaseException], ...] = (),
        interval: float = 1.0,
        silence: float = 300.0,
        patience: float = 15.0,
        stalled: float = 300.0,
    ) -> None:
        self.advice, self._orderly = advice, orderly
        self._interval, self._silence, self._patience, self._stalled = interval, silence, patience, stalled
        self._step, self._phase, self._state, self._reason = 0, "start", _RUNNING, ""
        self._lost: str | None = None
        self._changed, self._left = threading.Event(), threading.Event()
        self._store: Any = None
        self._thread: threading.Thread | None = None
        self._beat = 0
        self._hooks: list[Any] = []
        self._seen: dict[int, tuple[Any, float]] = {}  # rank -> (last news, when they came)

    def __enter__(self) -> "ProcessWatch":
        if distributed.world_size() > 1:
            self._rank, self._world = distributed.rank(), distributed.world_size()
            self._identity = {"host": _this_machine(), "pid": os.getpid(), "born": _birth(os.getpid())}
            self._store = self._connect()
        if self._store is not None:
            self._publish()
            distributed.barrier()  # nobody reads before everybody has written
            self._progress_at = time.monotonic()
            self._thread = threading.Thread(target=self._look_after_others, name="process watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        if error is None or isinstance(error, self._orderly):
            self._tell(_DONE)
            distributed.barrier()  # the store lives in the first process: it goes last
            self._stop()
            return
        lost = None
        if isinstance(error, LostProcessError):
            _say(str(error))
            self._tell(_LEAVING)
        elif isinstance(error, RuntimeError) and _BROKEN_CONNECTION.search(str(error)):
            lost = self._wait_for_reason()
            if lost:
                _say(lost)
            self._tell(_LEAVING if lost else _FAILED, _one_line(error))
        else:
            self._tell(_FAILED, _one_line(error))
        if self._rank == 0:
            self._let_others_read()
        self._stop()
        if lost:
            raise LostProcessError(lost) from error

    def at(self, step: int, phase: str) -> None:
        """Say where this process is. Costs microseconds: a thread passes it on.

        Raises:
            LostProcessError: another process is gone.
        """
        self._step, self._phase = step, phase
        self._changed.set()
        if self._lost is not None:
            raise LostProcessError(self._lost)

    def follow(self, model: nn.Module) -> None:
        """Say "forward" before and "backward" behind each call of ``model`` in training, at the step told last.

        In the phase "evaluation", say how many batches the model had.
        """
        if self._thread is not None:
            self._hooks.append(model.register_forward_pre_hook(lambda module, _: self._pass(module, "forward")))
            self._hooks.append(model.register_forward_hook(lambda module, *_: self._pass(module, "backward")))

    def _pass(self, module: nn.Module, phase: str) -> None:
        if module.training:
            self.at(self._step, phase)
        elif phase == "forward" and self._phase.startswith(_EVALUATION):
            count = self._phase.removeprefix(f"{_EVALUATION}, batch ")
            self.at(self._step, f"{_EVALUATION}, batch {int(count) + 1 if count.isdecimal() else 1}")

    # -- the store ---------------------------------------------------------------------------------------------------

    def _connect(self) -> Any:
        """A store that the first process holds; None, with a warning, where not every process can reach it."""
        hosts = distributed.gather_objects(self._identity["host"])
        address = "127.0.0.1" if len(set(hosts)) == 1 else os.environ.get("MASTER_ADDR", socket.gethostname())
        limit, problem = timedelta(seconds=30), ""
        store, port = None, 0
        if self._rank == 0:
            store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=limit)
            port = store.port
        address, port = distributed.broadcast_object((address, port))  # type: ignore[misc]
        if store is None:
            try:
                store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=limit)
            except (RuntimeError, OSError) as error:
                problem = f"process {self._rank} cannot reach {address}:{port} ({_one_line(error)})"
        problems = list(filter(None, distributed.gather_objects(problem)))
        if problems:
            logger.warning("processes do not look after each other: %s", problems[0])
            return None
        assert store is not None  # else there was a problem
        store.set_timeout(timedelta(seconds=self._silence))
        return store

    def _publish(self) -> None:
        self._beat += 1
        news = {"step": self._step, "phase": self._phase, "state": self._state, "reason": self._reason}
        self._store.set(f"process/{self._rank}", json.dumps({**news, **self._identity, "beat": self._beat}))

    def _read_others(self) -> dict[int, dict[str, Any]]:
        ranks = [rank for rank in range(self._world) if rank != self._rank]
        found = self._store.multi_get([f"process/{rank}" for rank in ranks])
        return {rank: json.loads(value) for rank, value in zip(ranks, found, strict=True)}

    def _tell(self, state: str, reason: str = "") -> None:
        self._state, self._reason = state, reason
        with suppress(RuntimeError):  # the first process is gone, and the store with it
            self._publish()

    def _stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._left.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _let_others_read(self) -> None:
        """The store ends with this process: wait until the others know why, but not for long."""
        deadline = time.monotonic() + 3 * self._interval
        with suppress(RuntimeError):
            while time.monotonic() < deadline and any(
                news["state"] == _RUNNING and _is_alive(news, self._identity) for news in self._read_others().values()
            ):
                time.sleep(0.05)

    # -- the others --------------------------------------------------------------------------------------------------

    def _look_after_others(self) -> None:
        next_look = time.monotonic()
        while not self._left.is_set():
            self._changed.wait(timeout=self._interval)
            self._changed.clear()
            try:
                self._publish()
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + self._interval
                    self._lost = self._find_lost()
            except RuntimeError:
                self._lost = None if self._left.is_set() else self._message_of_first()
            if self._lost is not None:
                self._end(self._lost)
                return
            self._left.wait(timeout=0.01)  # however fast the steps are, the store is asked 100 times a second at most

    def _find_lost(self) -> str | None:
        """The message about a process that is gone or has failed; None where all are well."""
        now, others = time.monotonic(), self._read_others()
        places = {}
        for rank, news in others.items():
            place = (news["step"], news["phase"])
            old_place = self._seen[rank][0][1] if rank in self._seen else None
            if rank not in self._seen or self._seen[rank][0][0] != news["beat"]:
                self._seen[rank] = ((news["beat"], place), now)
            if old_place != place:
                self._progress_at = now
            places[rank] = place
            if news["state"] == _FAILED:
                return self._message(rank, news, f"failed ({news['reason']})")
            if news["state"] == _RUNNING and not _is_alive(news, self._identity):
                return self._message(rank, news, "is gone")
            if news["state"] == _RUNNING and now - self._seen[rank][1] > self._silence:
                return self._message(rank, news, f"has not been heard of for {self._silence:.0f} s")
        if now - self._progress_at > self._stalled:
            self._progress_at = now
            places[self._rank] = (self._step, self._phase)
            text = ", ".join(
                f"process {rank} at step {step} ({phase})" for rank, (step, phase) in sorted(places.items())
            )
            logger.warning("no process has moved for %.0f s: %s", self._stalled, text)
        return None

    def _message(self, rank: int, news: dict[str, Any], what: str) -> str:
        return (
            f"process {rank} of {self._world} {what}: it was at step {news['step']}, phase {news['phase']}; process "
            f"{self._rank} stops at step {self._step}, phase {self._phase}. {self.advice}"
        )

    def _message_of_first(self) -> str:
        """Of the loss of the store, which the first process holds."""
        step, phase = self._seen[0][0][1] if 0 in self._seen else (self._step, "unknown")
        return self._message(0, {"step": step, "phase": phase}, "is gone")

    def _wait_for_reason(self) -> str | None:
        """Why a connection broke: the process table and news may be a little behind."""
        deadline = time.monotonic() + self._patience
        while self._lost is None and time.monotonic() < deadline:
            try:
                self._lost = self._find_lost()
            except RuntimeError:
                self._lost = self._message_of_first()
            time.sleep(0.05)
        return self._lost

    def _end(self, message: str) -> None:
        """Give the main thread time to stop by itself; where it hangs, end the process."""
        self._tell(_LEAVING)
        if self._left.wait(timeout=self._patience):
            return
        _say(message)
        os._exit(1)


@contextmanager
def watched_evaluation(step: int, advice: str, model: nn.Module | None = None) -> Iterator[None]:
    """A :class:`ProcessWatch` of an evaluation that belongs to no training step, or comes behind the last one.

    Args:
        step: steps of the training that are done.
        advice: how to go on, the end of the message.
        model: to tell by its batches how far the evaluation is.
    """
    with ProcessWatch(advice, silence=_SILENCE_OF_METRICS) as watch:
        watch.at(step, _EVALUATION)
        if model is not None:
            watch.follow(model)
        yield


def _say(message: str) -> None:
    # Not by a logger: most processes of a run only log to files. At once: launchers soon end the others by signals.
    print(f"error: {message}", file=sys.stderr, flush=True)


def _one_line(error: BaseException | None) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _this_machine() -> str:
    """Equal for processes that see each other in the process table."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {space}"


def _birth(pid: int) -> str:
    """When a process started, "" where it is not known, "gone" of one that has ended."""
    if not os.path.isdir("/proc/self"):
        return ""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return "gone"
    return "gone" if fields[0] in "ZX" else fields[19]


def _is_alive(news: dict[str, Any], own: dict[str, Any]) -> bool:
    """False only if it is certain: the process was on this machine and has ended."""
    return news["host"] != own["host"] or _birth(news["pid"]) == news["born"]
