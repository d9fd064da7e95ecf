"""Which number format the layers of a detector compute in at inference (``MODEL.INFERENCE_PRECISION``)."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from prompt_pretrain.errors import InputError

__all__ = ["PRECISIONS", "inference_dtype", "run_layers"]

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_Result = TypeVar("_Result", Tensor, dict[str, Tensor])


def inference_dtype(precision: str) -> torch.dtype | None:
    """The type of ``MODEL.INFERENCE_PRECISION``; None for that of the weights.

    Raises:
        InputError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"MODEL.INFERENCE_PRECISION is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def run_layers(layers: Callable[[Tensor], _Result], x: Tensor, dtype: torch.dtype | None) -> _Result:
    """``layers(x)`` in float32, computed in ``dtype``.

    Only the backbone, the box heads' layers and the mask head run this way. Proposals, scores and boxes stay float32:
    a logit is 50 times a cosine, which 8 bits of precision would round by a tenth.
    """
    if dtype is None:
        return layers(x)
    with torch.autocast(x.device.type, dtype=dtype):
        found = layers(x)
    if isinstance(found, dict):
        return {name: value.float() for name, value in found.items()}
    return found.float()
