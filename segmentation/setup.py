"""From a command line to a checked, frozen config."""

import argparse
import difflib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from prompt_pretrain.clip import fetch_clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.run_setup import is_missing_file, merge_settings, weights_to_start_from
from segmentation.class_embedding_hook import WITH_TEXT, resolve_class_embeddings_of
from segmentation.config import add_config
from segmentation.custom_data import is_asked_for, register_custom_data

__all__ = ["check_clips", "check_data_sets", "check_weights", "load_config", "setup", "take_prompt_from_weights"]
_log = logging.getLogger(__name__)

_FOLDERS = ("image_root", "sem_seg_root", "image_dir", "gt_dir")  # in the metadata of data sets


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of a command line, checked and frozen; sets up the output folder, loggers and random states.

    Args:
        args: of detectron2's argument parser, and what ``segmentation.task.add_arguments`` adds.
    Raises:
        InputError: a wrong file, key or value, an unknown data set, weights or a CLIP that are missing, or class
            embeddings that cannot be made.
    """
    cfg = load_config(args.config_file, args.opts)
    if is_asked_for(args):
        register_custom_data(cfg, args)
    check_data_sets(cfg, () if args.eval_only else cfg.DATASETS.TRAIN)
    check_data_sets(cfg, cfg.DATASETS.TEST)
    # Before the long config is printed, which would hide what is said.
    check_weights(weights_to_start_from(cfg, args))
    resolve_class_embeddings_of(cfg)
    check_clips(cfg)
    if args.eval_only:
        take_prompt_from_weights(cfg)
    cfg.freeze()
    for package in ("segmentation", "prompt_pretrain", "mask_former"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=package, abbrev_name=package)
    default_setup(cfg, args)
    return cfg


def load_config(config_file: str | os.PathLike, overrides: Sequence[str] = ()) -> CfgNode:
    """Defaults, a YAML file with its bases, then ``KEY VALUE`` pairs; not frozen. See ``merge_settings``."""
    cfg = get_cfg()
    add_config(cfg)
    merge_settings(cfg, config_file, overrides)
    return cfg


def check_data_sets(cfg: CfgNode, names: Sequence[str]) -> None:
    """Fail where a data set is not registered or a folder of it is missing.

    Raises:
        InputError: names the data set, the folder, and where it is looked for.
    """
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"data set {name!r} of DATASETS.TRAIN or DATASETS.TEST is not registered{hint}")
        metadata = MetadataCatalog.get(name)
        for folder in filter(None, map(metadata.get, _FOLDERS)):
            if "://" not in folder and not os.path.isdir(folder):
                root = os.environ.get("DETECTRON2_DATASETS", "datasets")
                raise InputError(
                    f"data set {name}: folder {folder} not found; data sets lie below {root} (DETECTRON2_DATASETS), "
                    "datasets/README.md says how to prepare them"
                )


def check_weights(path: str) -> None:
    """Fail where MODEL.WEIGHTS is a local file that does not exist.

    Raises:
        InputError: names the file and how to get it.
    """
    if not is_missing_file(path):
        return
    file = Path(path.partition("?")[0])
    origin = "give an existing file, or '' to start from random weights"
    if file.name == "model_final.pth":
        origin = f"it is the result of training with {file.parent.name}.yaml; train that first, or give another file"
    raise InputError(f"MODEL.WEIGHTS {file} not found; {origin}")


def check_clips(cfg: CfgNode) -> None:
    """Have the files of the CLIPs that the model is built with, without reading them.

    Raises:
        InputError: a missing file, an unknown name, or a download that fails.
    """
    node = cfg.MODEL.CLIP_ADAPTER
    names = {"CLIP_MODEL_NAME": node.CLIP_MODEL_NAME}
    if node.SEPERATE_ADAPTER:
        names["REGION_CLIP_ADAPTER.CLIP_MODEL_NAME"] = node.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME
    if cfg.MODEL.META_ARCHITECTURE not in WITH_TEXT:
        return
    for key, name in names.items():
        try:
            fetch_clip(name)
        except InputError as error:
            raise InputError(f"MODEL.CLIP_ADAPTER.{key}: {error}") from error


def take_prompt_from_weights(cfg: CfgNode) -> None:
    """Evaluation of a whole model needs no file of its prompt: it is in the weights, whose loading checks it."""
    adapter = cfg.MODEL.CLIP_ADAPTER
    for node in (adapter, adapter.REGION_CLIP_ADAPTER):
        path = node.PROMPT_CHECKPOINT
        if (
            path
            and not os.path.isfile(path)
            and cfg.MODEL.WEIGHTS
            and node.PROMPT_LEARNER in ("learnable", "pomp_tuned")
        ):
            _log.info("no file %s (PROMPT_CHECKPOINT): the prompt is that of MODEL.WEIGHTS", path)
            node.PROMPT_CHECKPOINT = ""
