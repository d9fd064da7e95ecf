"""Random streams that are named by numbers instead of carried as state."""

import hashlib

import torch


def stream_seed(purpose: str, *counters: int) -> int:
    """A 63-bit seed that depends on every counter and on what the stream is for."""
    text = ":".join([purpose, *(str(int(counter)) for counter in counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def make_generator(purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator for the stream ``(purpose, *counters)``, e.g. ``("view", seed, epoch, index, view)``.

    The same arguments give the same numbers in any process, whatever was drawn before.
    """
    return torch.Generator().manual_seed(stream_seed(purpose, *counters))
