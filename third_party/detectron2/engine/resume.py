"""What a checkpoint needs beyond weights and optimizer for a resumed training to equal an uninterrupted one."""

import logging
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import detectron2.utils.comm as comm


class ResumeState:
    """The seed of the training's random numbers and the place in its data.

    Random states follow from the seed, the rank and the iteration, so that none need be stored. A loader takes part if
    it has ``state_dict`` and ``load_state_dict``, as those of ``build_detection_train_loader`` do; its state must be
    equal on all processes, for only the main one writes checkpoints.
    """

    def __init__(self, seed: int) -> None:
        """``seed``: the same on all processes; a negative one makes them draw one together."""
        self.seed = seed if seed >= 0 else comm.shared_random_seed()

    def seed_iteration(self, iteration: int) -> None:
        """Seed this process's generators; to be called before each iteration."""
        words = np.random.SeedSequence((self.seed, comm.get_rank(), iteration)).generate_state(8, np.uint32)
        np.random.seed(words[:4])
        random.seed(int.from_bytes(words[4:6].tobytes(), "little"))
        number = int.from_bytes(words[6:].tobytes(), "little")
        torch.default_generator.manual_seed(number)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(number)

    def state_dict(self, loader: Any) -> dict[str, Any]:
        """{"seed": ..., "data": the loader's state, or None}."""
        return {"seed": self.seed, "data": loader.state_dict() if hasattr(loader, "state_dict") else None}

    def load_state_dict(self, state_dict: Mapping[str, Any] | None, loader: Any) -> None:
        """Restore what ``state_dict`` gave. Without it, or with a loader that has no state, data starts anew."""
        data = None
        if state_dict is not None:
            self.seed, data = state_dict["seed"], state_dict["data"]
        if data is not None and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(data)
        else:
            logging.getLogger(__name__).warning(
                "The checkpoint or the data loader does not know the place in the data: data starts anew"
            )
