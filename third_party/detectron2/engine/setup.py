"""What trainings and evaluations start with: arguments, set-up, writers, a model for several processes."""

import argparse
import os
import sys
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.utils.atomic import atomic_write
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """``model`` in a DistributedDataParallel if there are several processes; works on GPUs and on the CPU.

    Args:
        fp16_compression: exchange gradients in half precision.
        kwargs: for DistributedDataParallel.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    if "device_ids" not in kwargs and on_gpu:
        kwargs["device_ids"] = [comm.get_local_rank()]
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default as comm_hooks

        ddp.register_comm_hook(state=None, hook=comm_hooks.fp16_compress_hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser of the arguments that training commands have in common.

    Args:
        epilog: text below the help; by default examples.
    """
    program = sys.argv[0]
    examples = f"""
Examples:

Run on single machine:
    $ {program} --num-gpus 8 --config-file cfg.yaml

Change some config options:
    $ {program} --config-file cfg.yaml MODEL.WEIGHTS /path/to/weight.pth SOLVER.BASE_LR 0.001

Run on multiple machines:
    (machine0)$ {program} --machine-rank 0 --num-machines 2 --dist-url <URL> [--other-flags]
    (machine1)$ {program} --machine-rank 1 --num-machines 2 --dist-url <URL> [--other-flags]

Run under torchrun, which also decides about processes and machines:
    $ torchrun --nproc-per-node 8 {program} --config-file cfg.yaml
"""
    parser = argparse.ArgumentParser(epilog=epilog or examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in OUTPUT_DIR, if there is one, instead of starting from MODEL.WEIGHTS",
    )
    parser.add_argument("--eval-only", action="store_true", help="perform evaluation only")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of gpus *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="the rank of this machine (unique per machine)")
    # A port of one's own on a machine that several people use, the same in all processes.
    user = os.getuid() if hasattr(os, "getuid") else 1
    port = 2**15 + 2**14 + user % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="where the processes meet: an address of machine 0, or 'auto' for a free port on a single machine",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        default=None,
        help="config options at the end of the command, as pairs PATH.KEY VALUE",
    )
    return parser


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What a training or evaluation starts with.

    Makes ``cfg.OUTPUT_DIR``, sets up loggers, logs the environment, the arguments and the config, writes the config to
    ``config.yaml``, seeds the random generators (SEED plus rank) and sets the backend's options.
    """
    output_dir = cfg.OUTPUT_DIR
    if comm.is_main_process() and output_dir:
        PathManager.mkdirs(output_dir)
    rank = comm.get_rank()
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)

    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    logger.info("Environment info:\n" + collect_env_info())
    logger.info(f"Command line arguments: {args}")
    if getattr(args, "config_file", ""):
        with PathManager.open(args.config_file, "r") as file:
            logger.info(f"Contents of args.config_file={args.config_file}:\n{file.read()}")
    if comm.is_main_process() and output_dir:
        path = os.path.join(output_dir, "config.yaml")
        text = cfg.dump()
        logger.info(f"Running with full config:\n{text}")
        with atomic_write(path) as file:
            file.write(text)
        logger.info(f"Full config saved to {path}")

    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    # Evaluation sees many image sizes, and tuning for each takes longer than it saves.
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION:
        logger.info(f"Set fp32 precision to {cfg.FLOAT32_PRECISION}")
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers to the terminal, to ``metrics.json`` and to TensorBoard files in ``output_dir``."""
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]
