"""Ctrl-C and SIGTERM as a wish to stop at the next safe point."""

import signal
import threading
import time
from types import FrameType

from prompt_pretrain import distributed

# A terminal and a launcher such as torchrun both pass Ctrl-C on: signals that close together are one wish.
_IMPATIENT_AFTER_SECONDS = 2.0


class StopSignal:
    """Context in which the first SIGINT or SIGTERM only sets ``requested``; a later Ctrl-C interrupts at once.

    Outside the main thread, where Python does not allow handlers, signals keep their usual effect.
    """

    def __init__(self) -> None:
        self.requested = False
        self._requested_at = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._requested_at = True, now
        elif number == signal.SIGINT and now - self._requested_at > _IMPATIENT_AFTER_SECONDS:
            raise KeyboardInterrupt

    def agreed(self) -> bool:
        """Whether any process was asked to stop. A collective call: every process must make it at the same step."""
        return distributed.any_process(self.requested)
