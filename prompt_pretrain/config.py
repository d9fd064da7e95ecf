"""The configuration of prompt pre-training: every key with its default, and loading with errors a user can act on.

Keys, names and types are the published ones of POMP, CoOp and Dassl, so published YAML files and command lines merge;
keys that exist only here say so. :func:`load_cfg` is the one way in: YAML files with ``_BASE_``, then ``KEY VALUE``
overrides, then a check of every value that has a closed set of choices.
"""

import ast
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import BASE_KEY, CfgNode

from prompt_pretrain.baselines.config import BASELINES, add_baseline_config
from prompt_pretrain.errors import InputError


def get_cfg() -> CfgNode:
    """A fresh configuration that holds every key at its default."""
    cfg = CfgNode()
    cfg.VERSION = 1  # Accepted for published files; not used.
    # Folder of this run, its prompts go to prompt_learner/ below it; "" derives
    # output/<data set>/POMP/<config>_unc<K>_<shots>shots/nctx<M>_csc<bool>_ctp<position>/seed<seed>.
    cfg.OUTPUT_DIR = ""
    # "" continues the run found in OUTPUT_DIR, "off" starts again, a folder continues the run found there.
    cfg.RESUME = ""
    cfg.SEED = 42  # Seed (>= 0) of the few-shot subset, initial context, data order, augmentation and negatives.
    cfg.DEVICE = "auto"  # Ours. "auto" (CUDA where available), "cpu" or "cuda".
    cfg.USE_CUDA = True  # Published switch: False is the same as DEVICE cpu.
    cfg.VERBOSE = True  # Accepted for published files; not used.
    # Ours. Bytes of activations that a step may save for backward, e.g. "8GB", "500MB"; beyond it classes are encoded
    # in chunks that are recomputed in backward (exact gradients). "" has no limit.
    cfg.MEMORY_BUDGET = ""
    _add_data_config(cfg)
    _add_optimisation_config(cfg)
    _add_prompt_config(cfg)
    return cfg


def _add_data_config(cfg: CfgNode) -> None:
    cfg.DATASET = CfgNode()
    cfg.DATASET.NAME = ""  # Registered name: ImageNet21K, ImageNet, ImageFolder, ShapeWorld, ...
    cfg.DATASET.ROOT = "data"  # Folder that holds the data set's own folder.
    cfg.DATASET.NUM_SHOTS = -1  # Training images per class, drawn by SEED; -1 takes all.
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # "all", "base" (first half of the labels, rounded up) or "new" (the others).
    cfg.DATASET.NAMES_FILE = ""  # Ours. Class-name file of an ImageFolder data set; "" takes the data set's default.
    # Ours. Images per class kept out of training to choose the best epoch, where the data set has no validation split
    # of its own; taken from training images outside the few-shot subset where there are any.
    cfg.DATASET.HELD_OUT_SHOTS = 4

    cfg.DATALOADER = CfgNode()
    cfg.DATALOADER.NUM_WORKERS = 4  # Processes that read and augment images; 0 reads in the training process.
    cfg.DATALOADER.K_TRANSFORMS = 1  # Independently augmented views of each image in a step (training only), >= 1.
    cfg.DATALOADER.TRAIN_X = CfgNode()
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 32  # Images per process and step; views come on top.
    cfg.DATALOADER.TRAIN_X.SAMPLER = "RandomSampler"  # Accepted for published files: the order is always a permutation
    # by (SEED, epoch), dealt out to the processes.
    cfg.DATALOADER.TEST = CfgNode()
    cfg.DATALOADER.TEST.BATCH_SIZE = 100  # Images per process and evaluation step.
    cfg.DATALOADER.TEST.SAMPLER = "SequentialSampler"  # Accepted for published files; not used.

    cfg.INPUT = CfgNode()
    cfg.INPUT.SIZE = (224, 224)  # Pixels (height, width), equal; what the CLIP expects.
    cfg.INPUT.INTERPOLATION = "bicubic"  # Only "bicubic".
    cfg.INPUT.PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # RGB, of values in [0, 1].
    cfg.INPUT.PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
    # Any of "random_resized_crop", "random_flip", "randaugment2", "normalize"; the order is fixed whatever is written.
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.INPUT.CROP_SCALE = (0.08, 1.0)  # Shares of the image's area that random_resized_crop takes, from .. to.
    cfg.INPUT.RANDAUGMENT_N = 2  # Operations that randaugment2 draws per view.
    cfg.INPUT.RANDAUGMENT_M = 10  # Accepted for published files; randaugment2 draws its magnitudes.
    cfg.INPUT.NO_TRANSFORM = False  # Accepted for published files; only False.

    # Ours. Image features are computed once and kept on disk; off, the image tower runs in every step (as released).
    cfg.FEATURE_CACHE = CfgNode()
    cfg.FEATURE_CACHE.ENABLED = True
    cfg.FEATURE_CACHE.FOLDER = ""  # "" is ~/.cache/prompt_pretrain/image_features (or below $XDG_CACHE_HOME).
    cfg.FEATURE_CACHE.VIEWS = 4  # Augmented views per training image in the cache; epochs rotate through them.
    cfg.FEATURE_CACHE.BATCH_SIZE = 64  # Images per process and forward pass of the image tower while filling it.


def _add_optimisation_config(cfg: CfgNode) -> None:
    cfg.OPTIM = CfgNode()
    cfg.OPTIM.NAME = "sgd"  # Only "sgd".
    cfg.OPTIM.LR = 0.002  # Base learning rate; see REFERENCE_WORLD_SIZE.
    # Ours. Number of processes that LR is made for: on n of them (times ACCUMULATION_STEPS) it is multiplied by n over
    # this, since BATCH_SIZE is per process; 0 leaves it as it is, as released.
    cfg.OPTIM.REFERENCE_WORLD_SIZE = 0
    # Ours. Processes whose work each process does, one after the other: its step takes so many times BATCH_SIZE images,
    # with the memory of BATCH_SIZE. Same results as on so many processes.
    cfg.OPTIM.ACCUMULATION_STEPS = 1
    cfg.OPTIM.WEIGHT_DECAY = 5e-4  # Applies to ctx.
    cfg.OPTIM.MOMENTUM = 0.9
    cfg.OPTIM.SGD_DAMPNING = 0.0  # Published spelling.
    cfg.OPTIM.SGD_NESTEROV = False
    cfg.OPTIM.MAX_EPOCH = 5
    cfg.OPTIM.LR_SCHEDULER = "cosine"  # Only "cosine".
    cfg.OPTIM.WARMUP_EPOCH = 1  # Epochs of warm-up; -1 or 0 has none.
    cfg.OPTIM.WARMUP_TYPE = "constant"  # "constant" or "linear".
    cfg.OPTIM.WARMUP_CONS_LR = 1e-5  # Learning rate of the constant warm-up.
    cfg.OPTIM.WARMUP_MIN_LR = 1e-5  # Learning rate of the linear warm-up's first epoch.
    cfg.OPTIM.WARMUP_RECOUNT = True  # True: the schedule counts its epochs from the end of the warm-up.

    cfg.TRAIN = CfgNode()
    cfg.TRAIN.PRINT_FREQ = 10  # Steps between two log lines.
    cfg.TRAIN.CHECKPOINT_FREQ = 0  # Epochs between two kept prompts model.pth.tar-<epoch>; 0 keeps the last epoch only.
    cfg.TRAIN.CHECKPOINT_STEPS = 0  # Ours. Steps between two resumable states; 0 writes one per epoch only.
    cfg.TRAIN.COUNT_ITER = "train_x"  # Accepted for published files; not used.
    cfg.TRAIN.TENSORBOARD = True  # Ours. Write TensorBoard events beside metrics.jsonl where tensorboard is installed.

    cfg.TEST = CfgNode()
    cfg.TEST.NO_TEST = False  # True skips the evaluation on TEST.SPLIT after training.
    cfg.TEST.PER_CLASS_RESULT = False  # Also report the mean per-class accuracy.
    cfg.TEST.FINAL_MODEL = "last_step"  # Which prompt the next command names: "best_val" or "last_step".
    cfg.TEST.SPLIT = "test"  # "test" or "val".
    cfg.TEST.EVALUATOR = "Classification"  # Accepted for published files; only "Classification".
    cfg.TEST.COMPUTE_CMAT = False  # Accepted for published files; only False.
    # Ours. How model-best.pth.tar is chosen: "held_out" (best epoch on images held out from training), "test" (best
    # epoch on the test images, as released: optimistic), "last" (the last epoch).
    cfg.TEST.SELECTION = "held_out"


def _add_prompt_config(cfg: CfgNode) -> None:
    cfg.MODEL = CfgNode()
    cfg.MODEL.INIT_WEIGHTS = ""  # Prompt file to start from; its ctx must have the shape of this run's.
    cfg.MODEL.BACKBONE = CfgNode()
    # "ViT-B/16", "ViT-B/32", "RN50", "ViT-L/14", "<open_clip name>/<tag>", a weight file or an open_clip .json config.
    cfg.MODEL.BACKBONE.NAME = "ViT-B/16"
    cfg.MODEL.BACKBONE.WEIGHTS = ""  # Ours. Local weight file of that architecture; "" downloads the named ones.
    cfg.MODEL.BACKBONE.PRETRAINED = True  # Accepted for published files; only True.

    cfg.TRAINER = CfgNode()
    # "POMP"; a baseline: "CoOp", "CoCoOp", "VPT", "MaPLe", "LASP", "LinearProbe"; "RPL" (docs/REGIONAL_PROMPT.md).
    cfg.TRAINER.NAME = "POMP"
    pomp = cfg.TRAINER.POMP = CfgNode()
    pomp.N_CTX = 4  # Context vectors; CTX_INIT overrides it.
    pomp.CSC = False  # True learns one context per class, usable on these classes only.
    pomp.CTX_INIT = ""  # Words whose token embeddings are the initial context ("_" is a blank); "": Normal(0, 0.02).
    pomp.CLASS_TOKEN_POSITION = "end"  # Where the class name stands: "end", "middle" or "front".
    # True contrasts UPDATE_CLASS_NUM sampled classes per step (POMP), False all classes whatever UPDATE_CLASS_NUM says.
    pomp.EPT = False
    # K, classes in each image's softmax, its own included: 3 .. N; N, 0 or "all" is the exact softmax over all classes.
    pomp.UPDATE_CLASS_NUM = 128
    pomp.LOCAL_CORRECTION = True  # Add MARGIN to the negative logits.
    # Ours. "log10" (released), "ln" (unbiased estimate of the full softmax), a fixed number or "none".
    pomp.MARGIN = "log10"
    pomp.NEG_SAMPLING_MODE = "random"  # "random", "frequency", "similarity" or "easy" (dissimilar classes).
    # Ours. "shared": one list of negatives for the whole step, on any number of processes; "per_rank": one list per
    # process (released); "per_image": each image draws its own among the other classes (paper).
    pomp.NEGATIVES = "shared"
    # "amp": autocast in bf16 (fp16 where the GPU lacks it), fp32 on the CPU; "bf16", "fp16": autocast in that type;
    # "fp32". ctx, logits, softmax and optimiser are fp32 in all of them.
    pomp.PREC = "amp"
    add_baseline_config(cfg.TRAINER)


_CHOICES: dict[str, tuple[str, ...]] = {
    "DEVICE": ("auto", "cpu", "cuda"),
    "DATASET.SUBSAMPLE_CLASSES": ("all", "base", "new"),
    "INPUT.INTERPOLATION": ("bicubic",),
    "OPTIM.NAME": ("sgd",),
    "OPTIM.LR_SCHEDULER": ("cosine",),
    "OPTIM.WARMUP_TYPE": ("constant", "linear"),
    "TEST.FINAL_MODEL": ("best_val", "last_step"),
    "TEST.SPLIT": ("test", "val"),
    "TEST.EVALUATOR": ("Classification",),
    "TEST.SELECTION": ("held_out", "test", "last"),
    "TRAINER.NAME": ("POMP", *BASELINES),
    "TRAINER.POMP.CLASS_TOKEN_POSITION": ("end", "middle", "front"),
    "TRAINER.POMP.NEG_SAMPLING_MODE": ("random", "frequency", "similarity", "easy"),
    "TRAINER.POMP.NEGATIVES": ("shared", "per_rank", "per_image"),
    **{f"TRAINER.{node}.PREC": ("amp", "bf16", "fp16", "fp32") for node in ("POMP", *BASELINES.values())},
    "TRAINER.COOP.CLASS_TOKEN_POSITION": ("end", "middle", "front"),
    "TRAINER.HIERARCHY.MODE": ("none", "positives", "smooth"),
}
_MAX_NODES = 200_000  # values in a config, far more than any has
_TRANSFORMS = ("random_resized_crop", "random_flip", "randaugment2", "normalize")
_MINIMUM: dict[str, float] = {
    "SEED": 0,
    "DATASET.HELD_OUT_SHOTS": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.K_TRANSFORMS": 1,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 1,
    "DATALOADER.TEST.BATCH_SIZE": 1,
    "INPUT.RANDAUGMENT_N": 0,
    "FEATURE_CACHE.VIEWS": 1,
    "FEATURE_CACHE.BATCH_SIZE": 1,
    "OPTIM.LR": 0,
    "OPTIM.WEIGHT_DECAY": 0,
    "OPTIM.MOMENTUM": 0,
    "OPTIM.MAX_EPOCH": 1,
    "OPTIM.REFERENCE_WORLD_SIZE": 0,
    "OPTIM.ACCUMULATION_STEPS": 1,
    "TRAIN.PRINT_FREQ": 1,
    "TRAIN.CHECKPOINT_FREQ": 0,
    "TRAIN.CHECKPOINT_STEPS": 0,
    "TRAINER.POMP.N_CTX": 1,
    "TRAINER.COOP.N_CTX": 1,
    "TRAINER.COCOOP.N_CTX": 1,
    "TRAINER.VPT.N_CTX_VISION": 1,
    "TRAINER.VPT.PROMPT_DEPTH_VISION": 1,
    "TRAINER.MAPLE.N_CTX": 1,
    "TRAINER.MAPLE.PROMPT_DEPTH": 1,
    "TRAINER.LASP.N_CTX": 1,
    "TRAINER.LASP.GROUPS": 1,
    "TRAINER.LASP.TEXT_WEIGHT": 0,
    "TRAINER.RPL.N_CTX": 1,
    "TRAINER.HIERARCHY.LEVELS": 1,
    "TRAINER.HIERARCHY.WEIGHT": 0,
}
_ONLY: dict[str, object] = {
    "INPUT.NO_TRANSFORM": False,
    "TEST.COMPUTE_CMAT": False,
    "MODEL.BACKBONE.PRETRAINED": True,
}
# Keys that take a number or one of a few words.
_WORDS: dict[str, tuple[str, ...]] = {
    "TRAINER.POMP.UPDATE_CLASS_NUM": ("all",),
    "TRAINER.POMP.MARGIN": ("log10", "ln", "none"),
}
_NUMBER_OF_WORDS: dict[str, type] = {"TRAINER.POMP.UPDATE_CLASS_NUM": int, "TRAINER.POMP.MARGIN": float}


def load_cfg(
    config_file: str | os.PathLike | Sequence[str | os.PathLike] | None = None, overrides: Sequence[str] = ()
) -> CfgNode:
    """The defaults, changed by YAML files and then by ``KEY VALUE`` pairs; checked and frozen.

    Args:
        config_file: one file or several, merged in order. A file's ``_BASE_`` (a path relative to it, or a list of
            them) is merged before it. Only plain YAML data is read, never objects.
        overrides: ``[key, value, key, value, …]`` as on a command line.
    Raises:
        InputError: a file that is missing or no YAML, an unknown key (the nearest one is named), a value of another
            type or outside its choices.
    """
    cfg = get_cfg()
    if config_file is None:
        config_file = []
    elif isinstance(config_file, str | os.PathLike):
        config_file = [config_file]
    for path in config_file:
        for source, values in _read_with_bases(Path(path)):
            _merge(cfg, values, str(source))
    if len(overrides) % 2:
        raise InputError(f"overrides come in pairs KEY VALUE, but the last one, {overrides[-1]!r}, stands alone")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        _set(cfg, key, value, "the command line")
    try:
        _check(cfg)
    except InputError as error:
        sources = [*map(str, config_file), *(["the command line"] if overrides else [])]
        raise InputError(f"{' with '.join(sources)}: {error}" if sources else str(error)) from error
    cfg.freeze()
    return cfg


def flatten(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """``{"OPTIM.LR": 0.002, …}``, every leaf of ``cfg`` by its full key, in the order of definition."""
    return dict(_leaves(cfg, prefix))


def parse_bytes(text: str, key: str = "MEMORY_BUDGET") -> int | None:
    """Number of bytes that ``"8GB"``, ``"500 MB"`` or ``"1e9"`` stands for (powers of 1000; ``GiB`` of 1024).

    ``""`` gives None, i.e. no limit.
    """
    text = text.strip()
    if not text:
        return None
    number = text.rstrip("BbKkMmGgTtIi ")
    unit = text[len(number) :].strip().lower()
    factors = {"": 1, "b": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
    factors |= {f"{unit}b": factor for unit, factor in factors.items() if unit not in ("", "b")}
    factors |= {f"{unit}ib": 1024 ** (index + 1) for index, unit in enumerate("kmgt")}
    try:
        size = float(number) * factors[unit]
    except (ValueError, KeyError):
        size = 0.0
    if not 0 < size < float("inf"):
        raise InputError(f'{key} is {text!r}; expected a positive size such as "8GB" or "500MB"')
    return int(size)


class _Loader(yaml.SafeLoader):
    """Plain data."""

    def get_single_node(self) -> yaml.Node | None:
        """Refuses anchors that stand for each other many times: a text of 1 KB could unfold without end."""
        top = super().get_single_node()
        waiting: list[yaml.Node] = [] if top is None else [top]
        left = _MAX_NODES
        while waiting:
            node = waiting.pop()
            left -= 1
            if isinstance(node, yaml.MappingNode):
                waiting += [each for pair in node.value for each in pair]
            elif isinstance(node, yaml.SequenceNode):
                waiting += node.value
            if left < len(waiting):
                problem = f"more than {_MAX_NODES:,} values, counted wherever an anchor stands for them"
                raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return top


def _read_with_bases(path: Path, within: tuple[Path, ...] = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The files that make up ``path``, bases first, each with what it says itself."""
    path = Path(os.path.expanduser(path))
    if path.resolve() in within:
        raise InputError(f"{within[-1]}: {BASE_KEY} leads back to {path}; a file cannot inherit from itself")
    if within and path.exists() and not path.is_file():  # /dev/zero has no end
        raise InputError(f"{within[-1]}: {BASE_KEY} names {path}, which is no file")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        wanted_by = f", the {BASE_KEY} of {within[-1]}" if within else ""
        raise InputError(f"config file {path} not found{wanted_by}; give an existing .yaml file") from error
    except Exception as error:  # yaml's own errors, and whatever its constructors of numbers and dates stumble over
        raise InputError(f"{path} is not plain YAML: {' '.join(str(error).split())[:500]}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}; expected keys such as 'OPTIM: {{LR: 0.002}}'")
    bases = values.pop(BASE_KEY, [])
    for base in bases if isinstance(bases, list) else [bases]:
        yield from _read_with_bases(path.parent / os.path.expanduser(str(base)), (*within, path.resolve()))
    yield path, values


def _merge(cfg: CfgNode, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and isinstance(_find(cfg, key), CfgNode):
            _merge(cfg, value, source, f"{key}.")
        else:
            _set(cfg, key, value, source)


def _set(cfg: CfgNode, key: str, value: Any, source: str) -> None:
    old = _find(cfg, key)
    if old is None:
        raise InputError(f"{source}: there is no config key {key}{_suggestion(cfg, key)}")
    if isinstance(old, CfgNode):
        raise InputError(f"{source}: {key} is a group of keys; say {key}.{next(iter(old))} or another of its keys")
    *groups, name = key.split(".")
    node = cfg
    for group in groups:
        node = node[group]
    node[name] = _coerce(key, value, old, source)


def _find(cfg: CfgNode, key: str) -> Any:
    node: Any = cfg
    for name in key.split("."):
        if not isinstance(node, CfgNode) or name not in node:
            return None
        node = node[name]
    return node


def _leaves(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _suggestion(cfg: CfgNode, key: str) -> str:
    """Names the existing key most like ``key``: as a whole, or the one whose last part is."""
    keys = {existing.lower(): existing for existing, _ in _leaves(cfg)}
    # Of the keys that end alike the first counts: POMP's stand before the baselines'.
    by_name = {existing.rsplit(".", 1)[-1]: existing for existing in reversed(keys)}
    wanted = str(key).lower()
    if near := difflib.get_close_matches(wanted, keys, n=1, cutoff=0.75):
        return f"; did you mean {keys[near[0]]}?"
    if near := difflib.get_close_matches(wanted.rsplit(".", 1)[-1], by_name, n=1, cutoff=0.75):
        return f"; did you mean {keys[by_name[near[0]]]}?"
    near = difflib.get_close_matches(wanted, keys, n=1, cutoff=0.0)
    return f"; the nearest one is {keys[near[0]]}"


def _coerce(key: str, value: Any, old: Any, source: str) -> Any:
    """``value`` as the type of ``old``; strings are read as Python literals, as YAML has no tuples nor ``1e-5``."""
    words = _WORDS.get(key)
    literal = _literal(value) if isinstance(value, str) else value
    if words is not None:
        if isinstance(literal, str) and literal.lower() in words:
            return literal.lower()
        return _as_type(key, literal, _NUMBER_OF_WORDS[key], source, " or ".join(f'"{word}"' for word in words))
    if isinstance(old, str):
        # Any text is a valid string, also one that looks like a number.
        return literal if isinstance(literal, str) else _as_type(key, value, str, source)
    if isinstance(old, tuple):
        if not isinstance(literal, list | tuple):
            raise _type_error(key, value, "a list", source)
        return tuple(_as_type(key, _literal(item), type(old[0]), source, "in each place") for item in literal)
    return _as_type(key, literal, type(old), source)


def _as_type(key: str, value: Any, wanted: type, source: str, also: str = "") -> Any:
    if type(value) is wanted:
        return value
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    name = {int: "an integer", float: "a number", bool: "True or False", str: "text"}[wanted]
    raise _type_error(key, value, f"{name} {also if also.startswith('in ') else also and 'or ' + also}".strip(), source)


def _type_error(key: str, value: Any, expected: str, source: str) -> InputError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return InputError(f"{source}: {key} is {shown} ({type(value).__name__}); expected {expected}")


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _check(cfg: CfgNode) -> None:
    """Raise on the first value outside what its key allows."""
    values = flatten(cfg)
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise InputError(f"{key} is {values[key]!r}; expected one of {', '.join(map(repr, choices))}")
    for key, only in _ONLY.items():
        if values[key] != only:
            raise InputError(f"{key} is {values[key]!r}; only {only!r} is supported")
    for key, minimum in _MINIMUM.items():
        if not values[key] >= minimum:
            raise InputError(f"{key} is {values[key]!r}; expected at least {minimum}")
    unknown = [name for name in cfg.INPUT.TRANSFORMS if name not in _TRANSFORMS]
    if unknown:
        raise InputError(f"INPUT.TRANSFORMS names {unknown[0]!r}; expected some of {', '.join(_TRANSFORMS)}")
    if len(cfg.INPUT.SIZE) != 2 or cfg.INPUT.SIZE[0] != cfg.INPUT.SIZE[1] or cfg.INPUT.SIZE[0] < 1:
        raise InputError(f"INPUT.SIZE is {cfg.INPUT.SIZE}; expected two equal numbers of pixels such as (224, 224)")
    scale = cfg.INPUT.CROP_SCALE
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"INPUT.CROP_SCALE is {scale}; expected two shares of the area such as (0.08, 1.0)")
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.INPUT[key]) != 3:
            raise InputError(f"INPUT.{key} is {cfg.INPUT[key]}; expected three numbers, one for each of R, G and B")
    if cfg.TRAINER.HIERARCHY.WEIGHT > 1:
        raise InputError(f"TRAINER.HIERARCHY.WEIGHT is {cfg.TRAINER.HIERARCHY.WEIGHT}; expected a share of 0 to 1")
    num_sampled = cfg.TRAINER.POMP.UPDATE_CLASS_NUM
    if cfg.TRAINER.POMP.EPT and num_sampled != "all" and num_sampled != 0 and num_sampled < 3:
        raise InputError(
            f"TRAINER.POMP.UPDATE_CLASS_NUM is {num_sampled}; a softmax needs 3 classes or more: "
            'the image\'s own and two negatives (0 or "all" takes every class)'
        )
    parse_bytes(cfg.MEMORY_BUDGET)
