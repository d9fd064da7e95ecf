"""Train or evaluate a detector or a segmenter.

    python tools/train_net.py --config-file configs/detection/… --num-gpus 8
    python tools/train_net.py --config-file configs/detection/… --eval-only MODEL.WEIGHTS FILE
    torchrun --nproc-per-node 8 --max-restarts 3 tools/train_net.py --config-file configs/detection/…

The config's MODEL.META_ARCHITECTURE says which of the two it is. Settings of the file are changed by KEY VALUE pairs
at the end. ``--resume`` continues a run that was stopped, from the last checkpoint in OUTPUT_DIR; processes that
``torchrun --max-restarts`` starts again do so by themselves. Under Slurm and the like give SIGTERM: the run saves its
state after the step in progress and exits with 130.
"""

import argparse
import importlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType, ModuleType

import torch
from torch.multiprocessing.spawn import ProcessExitedException

import third_party  # noqa: F401  (makes detectron2 importable)
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm
from prompt_pretrain import distributed
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

TASKS = ("detection", "segmentation")
# Options of custom data that only one task knows; both have folders of images.
_OWNERS = {
    "train-json": "detection",
    "test-json": "detection",
    "train-labels": "segmentation",
    "test-labels": "segmentation",
    "classes": "segmentation",
    "test-classes": "segmentation",
}
_KEY = "MODEL.META_ARCHITECTURE"
_GO_ON = "run the same command with --resume to continue from the last checkpoint"
_DEFAULT_ARCHITECTURE = "GeneralizedRCNN"  # detectron2's, of configs that name none


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    task = find_task(args)
    check_options(task, args)
    if "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return _run_under_torchrun(task, args)
    if args.num_gpus * args.num_machines == 1:
        return _run(task, args)
    before = signal.signal(signal.SIGTERM, _pass_on)
    try:
        launch(
            _run_in_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(task, args),
        )
    except ProcessExitedException as error:  # it has said why, unless a signal ended it
        if error.exit_code >= 0:
            return error.exit_code
        name, rank = signal.Signals(-error.exit_code).name, args.machine_rank * args.num_gpus + error.error_index
        print(f"error: process {rank} was ended by {name}; {_GO_ON}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _pass_on(number: int, frame: FrameType | None) -> None:
    """The processes save their state and stop; this one waits for them."""
    for process in multiprocessing.active_children():
        process.terminate()


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = default_argument_parser()
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--task", choices=TASKS, help="in place of what MODEL.META_ARCHITECTURE says")
    for task in TASKS:
        if _exists(task) and hasattr(_module(task), "add_arguments"):
            _module(task).add_arguments(parser)
    args = parser.parse_args(argv)
    if args.config_file and not os.path.isfile(args.config_file):
        raise InputError(f"no config file {args.config_file}; see configs/")
    return args


def check_options(task: str, args: argparse.Namespace) -> None:
    """Raise InputError for no config at all, and for custom data of the other task, which nobody would look at."""
    if not args.config_file and not args.opts:
        raise InputError("nothing says what to train; give --config-file, a file of configs/detection or segmentation")
    for option, owner in _OWNERS.items():
        if owner != task and getattr(args, option.replace("-", "_"), None):
            raise InputError(f"--{option} is an option of {owner}, but the config is one of {task}; see --help")


def find_task(args: argparse.Namespace) -> str:
    """``--task``, or the task that has the config's meta architecture.

    Raises:
        InputError: the task is not part of this installation, or no task has the architecture.
    """
    if args.task:
        if not _exists(args.task):
            raise InputError(f"--task {args.task}: this installation has no package {args.task!r}")
        return args.task
    architecture = _meta_architecture(args)
    known: dict[str, str] = {}
    for task in filter(_exists, TASKS):
        known |= dict.fromkeys(_module(task).META_ARCHITECTURES, task)
    if architecture in known:
        return known[architecture]
    absent = [task for task in TASKS if not _exists(task)]
    hint = f"; this installation has no package {' and '.join(map(repr, absent))}" if absent else ""
    where = f"{args.config_file}: " if args.config_file else ""
    raise InputError(
        f"{where}{_KEY} is {str(architecture)[:80]!r}, expected one of {', '.join(sorted(known))}{hint}; "
        "check --config-file, or give --task"
    )


def _meta_architecture(args: argparse.Namespace) -> str:
    found = _DEFAULT_ARCHITECTURE
    if args.config_file:
        try:
            content = CfgNode.load_yaml_with_base(args.config_file)
        except (AssertionError, OSError, ValueError) as error:
            raise InputError(f"{args.config_file}: {error}") from error
        model = content.get("MODEL")
        found = str(model.get("META_ARCHITECTURE", found)) if isinstance(model, dict) else found
    pairs = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    return pairs.get(_KEY, found)


def _exists(task: str) -> bool:
    return importlib.util.find_spec(task) is not None and importlib.util.find_spec(f"{task}.task") is not None


def _module(task: str) -> ModuleType:
    return importlib.import_module(f"{task}.task")


def _run(task: str, args: argparse.Namespace) -> int:
    """The run in this process. 130: a signal stopped it, and its state is saved."""
    from prompt_pretrain.pretrain import TrainingInterrupted

    code = 0
    try:
        _module(task).main(args)
    except TrainingInterrupted as stopped:
        if comm.is_main_process():
            print(stopped, file=sys.stderr)
        code = 130
    comm.synchronize()  # one that leaves the group while another works in it can abort that one
    return code


def _run_in_process(task: str, args: argparse.Namespace) -> None:
    """The run in a process of ``launch``; its exit code tells the one that waits."""
    code = run_command(lambda _: _run_after_main(task, args))
    if code:
        sys.exit(code)


def _run_after_main(task: str, args: argparse.Namespace) -> int:
    try:
        return _run(task, args)
    except InputError:
        # Usually all processes find the same fault: let the main one say it, its exit ends the others.
        if not comm.is_main_process():
            time.sleep(5)
        raise


def _run_under_torchrun(task: str, args: argparse.Namespace) -> int:
    """``torchrun`` has started the processes; the real detectron2's ``launch`` knows nothing of it."""
    if distributed.is_restarted() and not args.eval_only:
        args.resume = True
    distributed.initialize("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if distributed.world_size() > 1:
            comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        return _run_after_main(task, args)
    finally:
        distributed.shutdown()


if __name__ == "__main__":
    sys.exit(run_command(main))
