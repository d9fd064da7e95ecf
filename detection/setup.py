"""From a command line to a checked, frozen config; and the weights that a run starts from."""

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from detection.caption_encoder import PUBLISHED_CLIP
from detection.class_embedding_hook import resolve_class_embeddings_of
from detection.task import add_config
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from prompt_pretrain.clip import fetch_clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.run_setup import explained_loading, is_missing_file, merge_settings, weights_to_start_from

__all__ = ["check_data_sets", "check_weights", "explained_loading", "load_config", "setup"]

_DETIC = 'the model zoo of "Detecting Twenty-thousand Classes using Image-level Supervision" (Detic)'
_POMP = '"Prompt Pre-Training with Twenty-Thousand Classes for Open-Vocabulary Visual Recognition" (POMP)'
# Part of a published file name -> where the file comes from. The first match counts.
_WEIGHTS_SOURCES = {
    "resnet50_miil_21k": 'published with "ImageNet-21K Pretraining for the Masses" (MIIL) and wrapped for detectron2',
    "swin_": 'published with "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"',
    "r2_101": 'published with "Res2Net: A New Multi-scale Backbone Architecture"',
    "BoxSup": f"in {_DETIC}",
    "Detic": f"in {_DETIC}",
    "CenterNet": 'in the model zoo of "Probabilistic two-stage detection" (CenterNet2)',
}


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of a command line, checked and frozen; sets up the output folder, loggers and random states.

    Args:
        args: of detectron2's argument parser, and what ``detection.task.add_arguments`` adds.
    Raises:
        InputError: a wrong file, key or value, an unknown data set, weights that are missing, or class embeddings that
            cannot be made.
    """
    cfg = load_config(args.config_file, args.opts)
    if any(getattr(args, name, None) for name in ("train_json", "test_json", "train_images", "test_images")):
        from detection.custom_data import register_custom_data

        register_custom_data(cfg, args)
    check_data_sets(cfg, () if args.eval_only else cfg.DATASETS.TRAIN)
    check_data_sets(cfg, cfg.DATASETS.TEST)
    # Before the long config is printed, which would hide what is said.
    check_weights(weights_to_start_from(cfg, args))
    if cfg.MODEL.WITH_CAPTION and cfg.MODEL.CAPTION_CLIP != PUBLISHED_CLIP:  # that one may be in the weights
        try:
            fetch_clip(cfg.MODEL.CAPTION_CLIP)
        except InputError as error:
            raise InputError(f"MODEL.CAPTION_CLIP: {error}") from error
    resolve_class_embeddings_of(cfg)
    cfg.freeze()
    for package in ("detection", "prompt_pretrain", "centernet"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=package, abbrev_name=package)
    default_setup(cfg, args)
    return cfg


def load_config(config_file: str | os.PathLike, overrides: Sequence[str] = ()) -> CfgNode:
    """Defaults, a YAML file with its bases, then ``KEY VALUE`` pairs; not frozen.

    See ``merge_settings``.
    """
    cfg = get_cfg()
    add_config(cfg)
    merge_settings(cfg, config_file, overrides)
    return cfg


def check_data_sets(cfg: CfgNode, names: Sequence[str]) -> None:
    """Fail where a data set is not registered or its annotation file is missing.

    Raises:
        InputError: names the data set, the file, and where it is looked for.
    """
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; --train-json and --test-json take COCO files"
            raise InputError(f"data set {name!r} of DATASETS.TRAIN or DATASETS.TEST is not registered{hint}")
        file = MetadataCatalog.get(name).get("json_file")
        if file and "://" not in file and not os.path.isfile(file):
            root = os.environ.get("DETECTRON2_DATASETS", "datasets")
            raise InputError(
                f"data set {name}: annotations {file} not found; data sets lie below {root} (DETECTRON2_DATASETS), "
                "datasets/README.md says how to prepare them"
            )


def check_weights(path: str) -> None:
    """Fail where MODEL.WEIGHTS is a local file that does not exist.

    Raises:
        InputError: names the file and the publication that it comes with.
    """
    if is_missing_file(path):
        file = path.partition("?")[0]
        raise InputError(f"MODEL.WEIGHTS {file} not found; {_source_of(file)}")


def _source_of(file: str) -> str:
    path = Path(file)
    if path.name == "model_final.pth":  # an earlier stage of a published schedule
        origin = f"it is the result of training with {path.parent.name}.yaml"
        if "pomp" in path.parent.name:
            origin += f", or released with {_POMP}"
        return f"{origin}; train that first, or set MODEL.WEIGHTS"
    source = next((text for part, text in _WEIGHTS_SOURCES.items() if part in path.name), "")
    if not source:
        return "give an existing file, or '' to start from random weights"
    return f"it is {source}; put it there, or set MODEL.WEIGHTS to a file ('' for random weights)"
