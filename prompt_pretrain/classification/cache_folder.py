"""Where things that can be made again are kept."""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prompt_pretrain.atomic_files import atomic_writer

logger = logging.getLogger(__name__)


def cache_folder(kind: str) -> Path:
    """``$XDG_CACHE_HOME/prompt_pretrain/<kind>``, by default below ``~/.cache``; not created."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "prompt_pretrain" / kind


def cache_file(kind: str, path: str | os.PathLike, suffix: str) -> Path:
    """The cache file about ``path`` (a data folder or archive)."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    return cache_folder(kind) / (digest[:32] + suffix)


def load_arrays(file: Path, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """The named arrays of an ``.npz`` cache file; None if it is absent, damaged or of another form."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except FileNotFoundError:
        return None
    except Exception:  # a damaged zip file raises almost anything; a cache is simply made again
        logger.info("ignored the damaged cache file %s", file)
        return None


def save_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz`` cache file; a folder that cannot be written to costs speed only, so it is not an error."""
    try:
        with atomic_writer(file) as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        logger.warning("could not save the cache file %s: %s", file, error.strerror or error)
