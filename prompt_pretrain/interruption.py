"""Ctrl-C and SIGTERM as a wish to stop at the next safe point."""

import signal
import threading
from types import FrameType

from prompt_pretrain import distributed


class StopSignal:
    """Context in which the first SIGINT or SIGTERM only sets ``requested``; a second one interrupts at once.

    Outside the main thread, where Python does not allow handlers, signals keep their usual effect.
    """

    def __init__(self) -> None:
        self.requested = False
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
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def agreed(self) -> bool:
        """Whether any process was asked to stop. A collective call: every process must make it at the same step."""
        if distributed.world_size() == 1:
            return self.requested
        return any(distributed.gather_objects(self.requested))
