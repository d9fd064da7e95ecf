"""A command of which one process dies: ``dying_rank.py TOOL RANK STEP HOW ARGUMENTS…``.

HOW is "kill" (as by the system, for lack of memory) or "error". Processes that are started again live on. Patching
happens on import, so that it also happens in the processes that ``launch`` spawns from this file.
"""

import os
import signal
import sys
from typing import Any

TOOL, RANK, STEP, HOW, *ARGUMENTS = sys.argv[1:]


def die_at(cls: type, name: str, step_of: Any) -> None:
    """Patch the method ``name`` of ``cls``, of which ``step_of`` tells the step by its arguments."""
    method = getattr(cls, name)

    def method_or_death(self: Any, *args: Any) -> Any:
        from prompt_pretrain import distributed

        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first and distributed.rank() == int(RANK) and step_of(self, *args) == int(STEP):
            if HOW == "error":
                raise OSError(5, "the disk says no")
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *args)

    setattr(cls, name, method_or_death)


if TOOL == "pretrain_prompt":
    from prompt_pretrain.pretrain import PromptPretrainer
    from tools.pretrain_prompt import main

    die_at(PromptPretrainer, "_take_step", lambda self, *_: self.step)
else:
    from detection.training import _Trainer
    from segmentation.training import Trainer
    from tools.train_net import main

    die_at(_Trainer, "_put_losses", lambda self, losses, storage: storage.iter)
    die_at(Trainer, "after_backward", lambda self: self.iter)


if __name__ == "__main__":
    from prompt_pretrain.command_line import run_command

    sys.exit(run_command(main, ARGUMENTS))
