"""Resumable training states: whole or absent on disk, checked when read, and never mixed between configurations.

A state is one file in the run's ``checkpoints/`` folder, written under a temporary name, flushed and renamed. The one
before it is kept until the next is durable, so at every instant at least one complete state exists. Prompts for use
are separate files (``prompt_learner/``); deleting the states never loses a prompt.
"""

import hashlib
import io
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.errors import InputError, reason_of
from prompt_pretrain.safe_pickle import check_unfolded

logger = logging.getLogger(__name__)

_FORMAT = 2
_KEPT = 2
_DIGEST_BYTES = 32


class CheckpointFolder:
    """The states of one run. Only the main process writes.

    Args:
        folder: where the files ``state-<step>.pth`` live; made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: Mapping[str, Any], step: int) -> Path:
        """Write ``state`` (tensors and plain values) as the state after ``step`` steps; drop all but the last two."""
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, "step": step, **state}, buffer)
        path = self.folder / f"state-{step:08d}.pth"
        with atomic_writer(path) as file:
            # A digest of our own: torch reads archives without checking their checksums.
            file.write(buffer.getbuffer())
            file.write(hashlib.sha256(buffer.getbuffer()).digest())
        for old in self._files()[:-_KEPT]:
            old.unlink(missing_ok=True)
        return path

    def exists(self) -> bool:
        """Whether there is any state, readable or not."""
        return bool(self._files())

    def load(self) -> dict[str, Any] | None:
        """The newest readable state, None if there is none; a damaged file is reported and passed over."""
        for path in reversed(self._files()):
            try:
                return _read(path)
            except _DamagedError as error:
                logger.warning("%s is damaged (%s); trying the state before it", path, error)
        return None

    def clear(self) -> None:
        """Remove every state, so that nothing can be continued from here."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.pth"), key=lambda path: (len(path.name), path.name))


class _DamagedError(Exception):
    """This file is not a whole state."""


def _read(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise _DamagedError("its checksum is wrong")
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # a file of someone who knows how the checksum is made
        raise InputError(f"{path} is no state of a pre-training ({reason_of(error)}); remove it") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} is no state of a pre-training but a {type(state).__name__}; remove it")
    check_unfolded(state, path)
    if state.get("format") != _FORMAT:
        raise InputError(
            f"{path} was written by another version (format {str(state.get('format'))[:40]}, expected {_FORMAT}); "
            "start again with --no-resume or in another OUTPUT_DIR"
        )
    return state


def check_settings(saved: Mapping[str, Any], current: Mapping[str, Any], folder: Path) -> None:
    """Raise unless a run with ``current`` settings may continue one with ``saved`` settings.

    Raises:
        InputError: names the first setting that differs, with both values.
    """
    for key in sorted({*saved, *current}):
        old, new = saved.get(key, "not set"), current.get(key, "not set")
        if old != new:
            raise InputError(
                f"the run in {folder} has {key} {old!r} but now it is {new!r}; set it back to continue that run, "
                "or start again with --no-resume, or choose another OUTPUT_DIR"
            )


def remove_temporary_files(folder: Path) -> None:
    """Delete what a killed process was writing in ``folder`` (not below it). Call where no other process writes."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            path.unlink()
