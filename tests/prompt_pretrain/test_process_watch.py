"""Processes that die, fail or hang: the others stop and say which one, in which step and phase."""

import logging
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from prompt_pretrain import distributed, process_watch
from prompt_pretrain.errors import LostProcessError
from prompt_pretrain.process_watch import ProcessWatch
from tests.prompt_pretrain import processes


def worker(rank: int, folder: Path, victim: int, how: str) -> None:
    sys.stderr = (folder / f"stderr{rank}").open("w")
    logging.getLogger("prompt_pretrain").addHandler(logging.FileHandler(folder / f"log{rank}"))
    if how == "stop":
        process_watch._this_machine = lambda: f"machine {rank}"  # of another one only its news are known
    model = torch.nn.Linear(1, 1)
    watch = ProcessWatch("Go on.", interval=0.1, patience=1.0, silence=0.5, stalled=0.3)
    try:
        with watch:
            watch.follow(model)
            for step in range(5):
                watch.at(step, "data")
                model(torch.ones(1, 1))
                if rank == victim and step == 3:
                    time.sleep(0.3)
                    die(how)
                if how == "kill while others wait" and step == 3:
                    time.sleep(60)  # as in a call that does not return
                distributed.average_(torch.ones(1))
    except LostProcessError as error:
        (folder / f"lost{rank}").write_text(str(error))
        os._exit(1)
    except OSError:
        os._exit(2)


def die(how: str) -> None:
    if how.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "error":
        raise OSError(5, "the disk says no")
    time.sleep(0.7)  # "slow"


def run(folder: Path, world: int, victim: int, how: str) -> list[int | None]:
    started = processes.start_ranks(worker, world, folder, victim, how)
    for rank, process in enumerate(started):
        if rank != victim:
            process.join()
    if how == "stop":
        started[victim].kill()
    return processes.exit_codes(started)


@pytest.mark.parametrize(("world", "victim"), [(4, 2), (2, 0)])  # the first process holds the store
def test_a_killed_process_is_named_by_all_others(tmp_path: Path, world: int, victim: int) -> None:
    codes = run(tmp_path, world, victim, "kill")
    assert codes == [-signal.SIGKILL if rank == victim else 1 for rank in range(world)]
    for rank in set(range(world)) - {victim}:
        assert (tmp_path / f"lost{rank}").read_text() == (
            f"process {victim} of {world} is gone: it was at step 3, phase backward; process {rank} stops at step 3, "
            "phase backward. Go on."
        )
        assert (tmp_path / f"stderr{rank}").read_text() == f"error: {(tmp_path / f'lost{rank}').read_text()}\n"


def test_an_error_of_one_process_is_told_by_the_other(tmp_path: Path) -> None:
    assert run(tmp_path, 2, 1, "error") == [1, 2]
    text = (tmp_path / "lost0").read_text()
    assert text.startswith(
        "process 1 of 2 failed (OSError: [Errno 5] the disk says no): it was at step 3, phase backward"
    )


def test_a_process_that_hangs_ends_with_the_message(tmp_path: Path) -> None:
    assert run(tmp_path, 2, 1, "kill while others wait") == [1, -signal.SIGKILL]
    assert (
        (tmp_path / "stderr0").read_text().startswith("error: process 1 of 2 is gone: it was at step 3, phase backward")
    )


def test_a_machine_that_falls_silent_is_given_up(tmp_path: Path) -> None:
    assert run(tmp_path, 2, 1, "stop")[0] == 1
    text = (tmp_path / "stderr0").read_text()  # its connection stands, so nothing else would wake the other
    assert "process 1 of 2 has not been heard of for 0 s: it was at step 3, phase backward" in text


def test_a_slow_process_is_warned_about(tmp_path: Path) -> None:
    assert run(tmp_path, 2, 1, "slow") == [0, 0]
    text = (tmp_path / "log0").read_text()
    assert "no process has moved for 0 s: process 0 at step 3 (backward), process 1 at step 3 (backward)" in text


def test_one_process_watches_nobody() -> None:
    model = torch.nn.Linear(1, 1)
    with ProcessWatch("") as watch:
        watch.follow(model)
        watch.at(1, "data")
    assert not model._forward_hooks and watch._store is None
    assert not distributed.any_process(False) and distributed.any_process(True)
