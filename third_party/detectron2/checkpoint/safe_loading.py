"""Reading files of ``torch.save`` without running code from them, and telling whether they are complete."""

import pickle
import re
import zipfile
from collections.abc import Set
from typing import Any

import torch


def load_torch(path: str) -> Any:
    """The content of a file written by ``torch.save``, tensors on the CPU, under torch's rules for weight files.

    Raises:
        pickle.UnpicklingError: objects that torch does not take for weights, such as NumPy scalars.
        FileNotFoundError: no such file.
        ValueError: the file is cut off or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except pickle.UnpicklingError as error:
        refused = refused_type(error)
        if refused is None:
            raise pickle.UnpicklingError(f"{path} is no checkpoint ({_summary(error)})") from error
        raise pickle.UnpicklingError(
            f"{path} holds {refused}, which is more than weights and could run code; if you trust the file, allow it "
            f"with torch.serialization.add_safe_globals"
        ) from error
    except Exception as error:  # torch raises whatever its parsers stumble over
        raise ValueError(f"{path} is cut off or damaged ({_summary(error)}); write or download it again") from error


def refused_type(error: pickle.UnpicklingError) -> str | None:
    """The full name of what torch refused to load; None if something else is wrong with the file."""
    found = re.search(r"Unsupported (?:global: GLOBAL|class|operand) (\S+)", str(error))
    return found[1][:200] if found else None


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(" :")


def is_complete(path: str, keys: Set[str] = frozenset()) -> bool:
    """Whether a file of ``torch.save`` is there, can be read to its end, checksums included, and holds ``keys``."""
    try:
        if not zipfile.is_zipfile(path):
            content = load_torch(path)
        else:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    return False
            if not keys:
                return True
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile):
        return False
    return isinstance(content, dict) and keys <= set(content)
