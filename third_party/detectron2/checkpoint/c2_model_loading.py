"""Names of parameters in foreign checkpoints: Caffe2's and torchvision's, and matching by the end of a name."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["align_and_update_state_dicts", "convert_basic_c2_names", "convert_c2_detectron_names"]

_logger = logging.getLogger(__name__)

# Each pattern is tried in turn on the name with dots for underscores.
_BASIC_C2_NAMES = [
    (r"\.w$", ".weight"),
    (r"\.b$", ".bias"),
    (r"\.[bg]n\.(?:s|gamma)$", ".norm.weight"),
    (r"\.[bg]n\.(?:bias|beta)$", ".norm.bias"),
    (r"\.bn\.(?:rm|running\.mean)$", ".norm.running_mean"),
    (r"\.bn\.(?:riv|running\.var)$", ".norm.running_var"),
    (r"^res\.conv1\.norm\.", "conv1.norm."),
    (r"^conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
    (r"^pred\.", "linear."),  # the classifier
]
_DETECTRON_C2_NAMES = [
    (r"^fpn\.inner\.res(\d+)\.\d+\.sum\.(?:lateral\.)?", r"fpn_lateral\1."),
    (r"^fpn\.res(\d+)\.\d+\.sum\.", r"fpn_output\1."),
    (r"^conv\.rpn\.(?:fpn\d+\.)?", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.cls\.logits\.(?:fpn\d+\.)?", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.bbox\.pred\.(?:fpn\d+\.)?", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^head\.conv(\d+)\.", r"box_head.conv\1."),
    (r"^cls\.score\.", "cls_score."),
    (r"^bbox\.pred\.", "bbox_pred."),
    (r"^\.?\[?mask\]?\.fcn(\d+)\.", r"mask_head.mask_fcn\1."),
    (r"^conv5\.mask\.", "mask_head.deconv."),
    (r"^mask\.fcn\.logits\.", "mask_head.predictor."),
]
_TORCHVISION_NAMES = [
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer1\.", "res2."),
    (r"^layer2\.", "res3."),
    (r"^layer3\.", "res4."),
    (r"^layer4\.", "res5."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^fc\.", "linear."),
]


def convert_basic_c2_names(original_keys: Iterable[str]) -> list[str]:
    """The names of a backbone from Caffe2 in detectron2's terms, in the same order."""
    return [_rename(key.replace("_", "."), _BASIC_C2_NAMES) for key in original_keys]


def convert_c2_detectron_names(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights of a detector from Caffe2 under detectron2's names.

    Caffe2 counts the background as class 0, detectron2 as the last one or not at all: the first row of the classifier
    moves to the end, the background's 4 rows of boxes and its row of masks are dropped.

    Returns:
        the weights, and for each new name the original one.
    """
    converted: dict[str, Tensor] = {}
    originals: dict[str, str] = {}
    for original, basic in zip(weights, convert_basic_c2_names(weights), strict=True):
        name = _rename(basic, _DETECTRON_C2_NAMES)
        if name in converted:
            raise ValueError(f"{originals[name]} and {original} of the checkpoint both mean {name}")
        converted[name] = _move_background(name, weights[original])
        originals[name] = original
    return converted, originals


def convert_torchvision_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of torchvision's ResNet under detectron2's names."""
    return {_rename(name, _TORCHVISION_NAMES): value for name, value in weights.items()}


def is_torchvision_resnet(names: Iterable[str]) -> bool:
    """Whether these are the names of torchvision's ResNet."""
    return {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer4.0.downsample.1.weight"} <= set(names)


def _rename(name: str, patterns: list[tuple[str, str]]) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


def _move_background(name: str, weight: Tensor) -> Tensor:
    if name.startswith("cls_score."):
        return weight.roll(-1, dims=0)
    if name.startswith("bbox_pred."):
        return weight[4:]
    return weight[1:] if name.startswith("mask_head.predictor.") else weight


def align_and_update_state_dicts(
    model_state_dict: Mapping[str, Tensor], ckpt_state_dict: Mapping[str, Tensor], c2_conversion: bool = True
) -> dict[str, Tensor]:
    """Rename the entries of a checkpoint that mean a parameter of the model.

    An entry b means the parameter a if a equals b or ends with "." + b; of several b, the longest. Entries that mean
    nothing or have another shape keep their names.

    Args:
        c2_conversion: translate Caffe2's names first.
    Raises:
        ValueError: one entry means several parameters.
    """
    weights, originals = dict(ckpt_state_dict), {}
    if c2_conversion:
        weights, originals = convert_c2_detectron_names(ckpt_state_dict)
    parameter_of: dict[str, str] = {}  # entry of the checkpoint -> parameter of the model
    for parameter, value in sorted(model_state_dict.items()):
        entry = _longest_suffix_in(parameter, weights)
        if entry is None:
            continue
        if weights[entry].shape != value.shape:
            _logger.warning(
                "%s has shape %s in the checkpoint but %s in the model (%s): it is not loaded",
                originals.get(entry, entry),
                tuple(weights[entry].shape),
                tuple(value.shape),
                parameter,
            )
            continue
        if entry in parameter_of:
            raise ValueError(
                f"{originals.get(entry, entry)} of the checkpoint fits both {parameter_of[entry]} and {parameter} of "
                f"the model; save the checkpoint with the full names of the parameters"
            )
        parameter_of[entry] = parameter
    if not parameter_of:
        _logger.warning("nothing in the checkpoint fits a parameter of the model by name and shape")
        return weights
    _logger.info("%d of %d entries of the checkpoint found their parameter", len(parameter_of), len(weights))
    for entry, parameter in parameter_of.items():
        _logger.debug("%s <- %s", parameter, originals.get(entry, entry))
    return {parameter_of.get(entry, entry): value for entry, value in weights.items()}


def _longest_suffix_in(parameter: str, entries: Mapping[str, Any]) -> str | None:
    suffix = parameter
    while suffix not in entries:
        _, dot, suffix = suffix.partition(".")
        if not dot:
            return None
    return suffix
