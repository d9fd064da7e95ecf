"""Checkpoints of learned baselines: our own, and those of the published code."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.baselines.learners import LASP, VPT, CoCoOp, Learner, LinearProbe, MaPLe
from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.regional.learner import RegionalPrompt
from prompt_pretrain.safe_pickle import read_torch_archive

LEARNERS: dict[str, type[Learner]] = {
    kind.trainer: kind for kind in (CoCoOp, VPT, MaPLe, LASP, LinearProbe, RegionalPrompt)
}
_PREFIX = "prompt_learner."


def save_learner(
    path: str | os.PathLike,
    parameters: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    *,
    epoch: int | None = None,
    val_result: float | None = None,
) -> None:
    """Write parameters atomically in the published form: ``state_dict``, ``epoch``, ``val_result``; and ``metadata``.

    ``metadata["trainer"]`` and ``metadata["arguments"]`` say how to build the learner again.
    """
    state = {name: value.detach().cpu() for name, value in parameters.items()}
    buffer = io.BytesIO()
    torch.save({"state_dict": state, "epoch": epoch, "val_result": val_result, "metadata": dict(metadata)}, buffer)
    with atomic_writer(path) as file:
        file.write(buffer.getvalue())


def load_learner(path: str | os.PathLike, clip: Clip) -> Learner:
    """The learner of a file that :func:`save_learner` wrote, on the CLIP's device.

    Raises:
        InputError: no such file, a file of other content, or one made for another CLIP.
    """
    content = read_learner_file(path)
    metadata = content.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    kind = LEARNERS.get(metadata.get("trainer", ""))
    if kind is None or not isinstance(metadata.get("arguments"), Mapping):
        raise InputError(
            f"{path} does not say which baseline it holds; give a file written by tools/pretrain_prompt.py with "
            f"--trainer {' or '.join(LEARNERS)}"
        )
    known = (metadata.get("text_tower"), metadata.get("image_tower"))
    if None not in known and known != (clip.text_fingerprint, clip.image_fingerprint):
        raise InputError(
            f"{path} was trained on {metadata.get('clip_id')}, whose weights differ from those of {clip.clip_id}; "
            "name that CLIP"
        )
    learner = kind(clip, **metadata["arguments"])
    _load_state(learner, content["state_dict"], path)
    return learner.to(clip.device)


def load_published(learner: Learner, path: str | os.PathLike) -> None:
    """Fill a learner from a checkpoint of the published code: frozen weights and token buffers in it are left out.

    Raises:
        InputError: no such file, or a parameter is missing or has another shape.
    """
    _load_state(learner, read_learner_file(path)["state_dict"], path)


def read_learner_file(path: str | os.PathLike) -> dict[str, Any]:
    """Content of a model's file, which has a ``state_dict`` at least.

    Raises:
        InputError: no such file, or one of other content.
    """
    if not Path(path).is_file():
        raise InputError(f"no file {path}; give the model that tools/pretrain_prompt.py wrote for a baseline")
    content = read_torch_archive(path)
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise InputError(f"{path} holds no 'state_dict'; give the model that tools/pretrain_prompt.py wrote")
    return dict(content)


def _load_state(learner: Learner, state: Mapping[str, Any], path: str | os.PathLike) -> None:
    given = {name.removeprefix("module."): value for name, value in state.items()}
    with torch.no_grad():
        for name, parameter in learner.state_dict().items():
            value = given.get(name, given.get(name.removeprefix(_PREFIX)))
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                found = tuple(value.shape) if isinstance(value, Tensor) else "none"
                raise InputError(
                    f"{path} has no {name} of shape {tuple(parameter.shape)} for {learner.trainer}, found {found}; use "
                    "the CLIP, prompt length and depth that it was trained with"
                )
            parameter.copy_(value)
