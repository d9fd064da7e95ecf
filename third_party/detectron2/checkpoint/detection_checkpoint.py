"""``DetectionCheckpointer``: fvcore's, for files of several origins, written so that no crash spoils them."""

import glob
import logging
import os
import pickle
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.checkpoint import Checkpointer, _IncompatibleKeys, _strip_prefix_if_present
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.checkpoint.c2_model_loading import (
    align_and_update_state_dicts,
    convert_torchvision_names,
    is_torchvision_resnet,
)
from detectron2.checkpoint.safe_loading import is_complete, load_torch, refused_type
from detectron2.checkpoint.safe_pickle import load_pickle
from detectron2.utils import comm
from detectron2.utils.atomic import TEMPORARY, atomic_write
from detectron2.utils.file_io import PathManager

_HEURISTICS = "matching_heuristics=True"
# Made by the model itself from its configuration: old checkpoints hold them or not.
_SELF_MADE = ("pixel_mean", "pixel_std")


class DetectionCheckpointer(Checkpointer):
    """Saves a model and objects with a ``state_dict`` beside it; loads native, Caffe2 and torchvision checkpoints.

    Files are read without running code from them. They are written under a temporary name and renamed once they are
    complete, so that a process killed at any moment leaves the previous checkpoint in place.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        """
        Args:
            save_dir: folder of the checkpoints.
            save_to_disk: None lets the main process write, and no other.
            checkpointables: objects with ``state_dict`` and ``load_state_dict``, saved under these names.
        """
        super().__init__(
            model,
            save_dir,
            save_to_disk=comm.is_main_process() if save_to_disk is None else save_to_disk,
            **checkpointables,
        )
        self.logger = logging.getLogger(__name__)
        self.path_manager = PathManager
        self._is_distributed = isinstance(model, DistributedDataParallel)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` with the model, all checkpointables and ``kwargs``, and make it the last checkpoint.

        Raises:
            ValueError: the name is a path, or an object to save could not be loaded again as plain data.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        basename = f"{name}.pth"
        if os.path.basename(basename) != basename:
            raise ValueError(f"{name!r} is no file name; checkpoints are written into {self.save_dir}")
        data = {"model": self.model.state_dict()}
        data |= {key: _plain(checkpointable.state_dict()) for key, checkpointable in self.checkpointables.items()}
        data |= _plain(kwargs)
        self.path_manager.mkdirs(self.save_dir)
        path = os.path.join(self.save_dir, basename)
        for leftover in glob.glob(os.path.join(glob.escape(self.save_dir), "*.pth" + TEMPORARY)):
            os.remove(leftover)  # of a process that was killed while writing
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_write(path, "wb") as file:
            torch.save(data, file)
            file.flush()
            _check_readable(file.name, basename)
        self.tag_last_checkpoint(basename)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note the file to resume from."""
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; "" loads nothing.

        Args:
            path: a file, a URL or ``detectron2://...``; with ``?matching_heuristics=True`` at its end, entries find
                their parameters by the end of the names. ``.pkl``, ``.safetensors``, or else a file of ``torch.save``.
            checkpointables: names of those to restore; None for all.
        Returns:
            what the checkpoint holds besides the model and the restored objects, such as the iteration.
        Raises:
            FileNotFoundError: no such file (with several processes: on the main one).
            ValueError: an unknown query behind the path, or a file that is damaged or holds no weights.
            pickle.UnpicklingError: a file that holds more than data.
        """
        if not path:
            self.logger.info("No checkpoint found. Initializing model from scratch")
            return {}
        file, _, query = (path, "", "") if os.path.isfile(path) else path.partition("?")
        if query not in ("", _HEURISTICS):
            raise ValueError(
                f"{path}: unknown query {query!r}; only ?{_HEURISTICS} may follow the name of a checkpoint"
            )
        self.logger.info("[DetectionCheckpointer] Loading from %s ...", path)
        checkpoint = self._read(file)
        if query:
            checkpoint["matching_heuristics"] = True
        incompatible = self._load_model(checkpoint)
        if incompatible is not None:  # subclasses may return nothing
            self._log_incompatible_keys(incompatible)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self.logger.info("Loading %s from %s ...", key, path)
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
        return checkpoint

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """With ``resume`` and a last checkpoint, restore everything from it; else load the model alone from ``path``.

        If the last checkpoint is missing or damaged, the newest complete one in its folder takes its place.

        Raises:
            ValueError: there have been checkpoints to resume from, but none is complete.
        """
        if not (resume and self._agree(self.has_checkpoint())):
            return self.load(path, checkpointables=[])
        file = self._agree(self._find_last_complete())
        if file is None:
            raise ValueError(
                f"no complete checkpoint in {self.save_dir}, though there has been one; "
                f"remove {os.path.join(self.save_dir, 'last_checkpoint')} to start anew"
            )
        return self.load(file)

    def _find_last_complete(self) -> str | None:
        if self._is_distributed and not comm.is_main_process():
            return None  # the main process decides
        last = self.get_checkpoint_file()
        if "://" in last or is_complete(last):
            return last
        others = [file for file in self.get_all_checkpoint_files() if file != last]
        for file in sorted(others, key=os.path.getmtime, reverse=True):
            if is_complete(file, keys={"iteration", *self.checkpointables}):
                self.logger.warning("%s is missing or damaged; resuming from %s", last, file)
                return file
        return None

    def _agree(self, value: Any) -> Any:
        """The main process' value, on every process that trains the model."""
        return comm.all_gather(value)[0] if self._is_distributed else value

    def _read(self, path: str) -> dict[str, Any]:
        """The content of a checkpoint; processes that cannot see the file get it from the main one."""
        local = path if os.path.isfile(path) else self.path_manager.get_local_path(path)
        seen = comm.all_gather(os.path.isfile(local)) if self._is_distributed else [os.path.isfile(local)]
        if not seen[0]:
            where = " on the main process" if len(seen) > 1 else ""
            raise FileNotFoundError(f"Checkpoint {path} not found{where}!")
        if all(seen):
            return self._load_file(local)
        self.logger.warning(
            "%d of %d processes cannot see %s: the main one sends it", seen.count(False), len(seen), path
        )
        content: list[Any] = [None]
        if comm.is_main_process():
            try:
                content = [self._load_file(local)]
            except Exception as error:  # the others wait for an answer
                content = [error]
        dist.broadcast_object_list(content, src=0, group=comm._get_global_gloo_group())
        if isinstance(content[0], Exception):
            raise content[0]
        return content[0]

    def _load_file(self, filename: str) -> dict[str, Any]:
        """The content of a local file as a dict with "model" (name to array or tensor) and maybe more."""
        if filename.endswith(".pkl") and not _is_torch_archive(filename):
            loaded = load_pickle(filename)
            if isinstance(loaded, dict) and "model" in loaded and "__author__" in loaded:
                self.logger.info("Reading a file from '%s'", loaded["__author__"])
                return loaded
            weights = loaded.get("blobs", loaded) if isinstance(loaded, dict) else loaded
            weights = _check_dict(weights, filename)
            # Names that are no text are refused with the weights.
            weights = {k: value for k, value in weights.items() if not (isinstance(k, str) and k.endswith("_momentum"))}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        if filename.endswith(".safetensors"):
            loaded = _load_safetensors(filename)
        else:
            loaded = _check_dict(self._torch_load(filename), filename)
        return loaded if "model" in loaded else {"model": loaded}

    def _torch_load(self, f: str) -> Any:
        return load_torch(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        weights = checkpoint["model"]
        self._convert_ndarray_to_tensor(weights)
        _strip_prefix_if_present(weights, "module.")
        own = self.model.state_dict()
        heuristics = checkpoint.get("matching_heuristics", False)
        if is_torchvision_resnet(weights) and not any(name.endswith("layer1.0.conv1.weight") for name in own):
            self.logger.info(
                "These are the names of torchvision's ResNet, whose images are RGB and STRIDE_IN_1X1 False"
            )
            weights, heuristics = convert_torchvision_names(weights), True
        if heuristics:
            from_caffe2 = checkpoint.get("__author__") == "Caffe2"
            weights = align_and_update_state_dicts(own, weights, c2_conversion=from_caffe2)
        checkpoint["model"] = weights
        incompatible = super()._load_model(checkpoint)
        missing, unexpected = incompatible.missing_keys, incompatible.unexpected_keys
        # Frozen normalisation layers have this counter or not, depending on how they were frozen.
        missing[:] = [name for name in missing if name not in _SELF_MADE and not name.endswith("num_batches_tracked")]
        unexpected[:] = [
            name for name in unexpected if "anchor_generator.cell_anchors" not in name and "num_batches" not in name
        ]
        return incompatible

    def _convert_ndarray_to_tensor(self, state_dict: dict[str, Any]) -> None:
        """In place.

        Raises:
            ValueError: an entry that is neither an array nor a tensor.
        """
        if not isinstance(state_dict, dict):
            raise ValueError(f'"model" of the checkpoint is a {type(state_dict).__name__}, expected names to tensors')
        for name, value in state_dict.items():
            if isinstance(value, torch.Tensor) and isinstance(name, str):
                continue
            is_array = isinstance(value, np.ndarray | np.generic) and np.asarray(value).dtype.kind in "biufc"
            if not isinstance(name, str) or not is_array:
                raise ValueError(
                    f"Unsupported type found in checkpoint! {str(name)[:80]}: {type(value)}; expected arrays or "
                    f'tensors, directly or under "model"'
                )
            array = np.array(value)  # a copy: arrays from files may be read-only
            state_dict[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _plain(value: Any) -> Any:
    """NumPy's scalars, which safe loading refuses, as Python's; containers of plain type are copied."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    return value


def _check_readable(path: str, name: str) -> None:
    """Fail now instead of when the training is to be resumed. Maps the tensors instead of reading them."""
    try:
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name} would not load again: besides tensors, a checkpoint may hold numbers, strings, lists, tuples and "
            f"dicts only, found {refused_type(error) or error}"
        ) from error


def _is_torch_archive(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"  # a zip file; no pickle starts so


def _load_safetensors(path: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut off or no safetensors file ({str(error)[:200]})") from error


def _check_dict(loaded: Any, path: str) -> dict[str, Any]:
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, expected a dict of weights")
    return loaded
