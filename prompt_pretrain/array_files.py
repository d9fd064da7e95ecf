"""Reading ``.npy`` files of others: only numbers and text, never more memory than the file is long."""

import os

import numpy as np

from prompt_pretrain.errors import InputError, reason_of

__all__ = ["read_npy"]


def read_npy(path: str | os.PathLike, remedy: str = "get it again") -> np.ndarray:
    """The array in a file; writable.

    Raises:
        FileNotFoundError: no such file.
        InputError: no such array, a damaged one, an empty one, or one of objects.
    """
    try:
        # Mapped before it is read: a header that promises more than the file holds is an error and costs no memory.
        return np.array(np.lib.format.open_memmap(os.fspath(path), mode="r"))
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged headers, which are Python literals, raise almost anything
        raise InputError(f"{path} is no readable .npy array of numbers ({reason_of(error)}); {remedy}") from error
