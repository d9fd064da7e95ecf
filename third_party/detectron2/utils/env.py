"""Random state and versions of the environment."""

import logging
import os
import random
from datetime import datetime

import numpy as np
import torch

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
"""(major, minor) of torch."""


def seed_all_rng(seed: int | None = None) -> None:
    """Seed Python's, NumPy's and torch's random generators; None draws a seed and logs it."""
    if seed is None:
        seed = os.getpid() + int(datetime.now().strftime("%S%f")) + int.from_bytes(os.urandom(2), "big")
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)  # for the processes started from here
