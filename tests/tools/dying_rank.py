"""A command of which one process dies: ``dying_rank.py TOOL RANK STEP ARGUMENTS…``, or `run` as a function.

Processes that are started again live on. As a script it patches on import, so that the processes that ``launch``
spawns from this file are patched too.
"""

import os
import signal
import sys
import time
from typing import Any


def die(tool: str, rank: int, step: int) -> None:
    """Patch the trainers of ``tool``: process ``rank`` is killed in step ``step``, as for lack of memory."""
    from detection.training import _Trainer
    from prompt_pretrain.pretrain import PromptPretrainer
    from segmentation.training import Trainer

    if tool == "pretrain_prompt":
        _die_at(PromptPretrainer, "_take_step", lambda self, *_: self.step, rank, step)
    else:
        _die_at(_Trainer, "_put_losses", lambda self, losses, storage: storage.iter, rank, step)
        _die_at(Trainer, "after_backward", lambda self: self.iter, rank, step)


def _die_at(cls: type, name: str, step_of: Any, rank: int, step: int) -> None:
    method = getattr(cls, name)

    def method_or_death(self: Any, *args: Any) -> Any:
        from prompt_pretrain import distributed

        if not distributed.is_restarted() and distributed.rank() == rank and step_of(self, *args) == step:
            time.sleep(1)  # so that the others know where it is
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *args)

    setattr(cls, name, method_or_death)


def run(tool: str, rank: int, step: int, arguments: list[str]) -> None:
    """The command in this process, which ``torchrun`` has started."""
    import importlib

    import torch

    from prompt_pretrain.command_line import run_command

    torch.set_num_threads(1)
    die(tool, rank, step)
    code = run_command(importlib.import_module(f"tools.{tool}").main, arguments)
    if code:
        sys.exit(code)


if __name__ in ("__main__", "__mp_main__"):
    die(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

if __name__ == "__main__":
    from prompt_pretrain.command_line import run_command
    from tools.train_net import main

    sys.exit(run_command(main, sys.argv[4:]))
