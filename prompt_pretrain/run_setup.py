"""What trainings of detection and segmentation start with: merging a config, and weights that may be missing.

Configs are those of detectron2, which this module does not import.
"""

import argparse
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prompt_pretrain import distributed
from prompt_pretrain.errors import InputError

__all__ = [
    "choose_device",
    "explained_data",
    "explained_loading",
    "find_config_file",
    "forget_earlier_run",
    "is_missing_file",
    "merge_settings",
    "weights_to_start_from",
]
_log = logging.getLogger(__name__)


def choose_device(device: str | torch.device | None) -> str:
    """What a model is asked to run on, as text; without a wish CUDA where there is a device, else the CPU.

    Raises:
        InputError: no name of a device, or a CUDA device that this machine does not have.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}; give cpu, cuda or cuda:1") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise InputError(f"no device {wanted} here, {torch.cuda.device_count()} CUDA devices are usable; try cpu")
    return str(device)


def find_config_file(name: str | os.PathLike, folder: Path) -> Path:
    """A YAML file by its path, or by its name in ``folder`` or below, without ``.yaml``.

    Raises:
        InputError: no such file, or several.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"no config file {path}; check the path")
        return path
    found = [folder / f"{name}.yaml"] if (folder / f"{name}.yaml").is_file() else sorted(folder.rglob(f"{name}.yaml"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"no config {os.fspath(name)!r} in {folder}; give a name from there or a .yaml file")
    choices = ", ".join(str(each.relative_to(folder).with_suffix("")) for each in found)
    raise InputError(f"{len(found)} configs are called {os.fspath(name)!r}: {choices}; give one of these")


def merge_settings(cfg: Any, config_file: str | os.PathLike, overrides: Sequence[str] = ()) -> None:
    """Merge a YAML file with its bases, then ``KEY VALUE`` pairs, into ``cfg``, which has all keys with defaults.

    ``/auto`` in OUTPUT_DIR becomes the name of the file. Without CUDA, MODEL.DEVICE "cuda" becomes "cpu".

    Args:
        config_file: "" for none.
    Raises:
        InputError: no such file, an unknown key, a value of another type.
    """
    overrides = list(overrides or ())
    if len(overrides) % 2:
        raise InputError(f"settings come in pairs KEY VALUE, but the last one, {overrides[-1]!r}, stands alone")
    try:
        if config_file:
            cfg.merge_from_file(str(config_file))
        cfg.merge_from_list(overrides)
    except (AssertionError, KeyError, ValueError, OSError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise InputError(f"{config_file or 'the command line'}: {text}") from error
    name = Path(config_file).stem if config_file else "custom"
    cfg.OUTPUT_DIR = cfg.OUTPUT_DIR.replace("/auto", f"/{name}")
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        _log.warning("no CUDA device here: MODEL.DEVICE %s becomes cpu", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"


def forget_earlier_run(output_dir: str) -> None:
    """Before a training that starts anew where ``torchrun --max-restarts`` may start its processes again.

    Those continue from the last checkpoint, which must not be that of an earlier training in the same folder: the file
    that names it becomes ``last_checkpoint_of_earlier_run``.
    """
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    pointer = Path(output_dir, "last_checkpoint")
    if restarts and not distributed.is_restarted() and distributed.is_main_process() and pointer.is_file():
        pointer.replace(pointer.with_name("last_checkpoint_of_earlier_run"))


def weights_to_start_from(cfg: Any, args: argparse.Namespace) -> str:
    """MODEL.WEIGHTS; "" for a run that goes on from a checkpoint of its own."""
    resuming = getattr(args, "resume", False) and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    return "" if resuming else str(cfg.MODEL.WEIGHTS)


def is_missing_file(path: str) -> bool:
    """Whether MODEL.WEIGHTS names a local file that does not exist; "" and URLs do not."""
    file = path.partition("?")[0]
    return bool(file) and "://" not in file and not os.path.isfile(file)


@contextmanager
def explained_data(what: str = "the data set cannot be loaded", file: str = "") -> Iterator[None]:
    """Inside of it, what detectron2 says of a wrong annotation file becomes an :class:`InputError`.

    The bundled loaders raise an error that is a ValueError, a KeyError and an AssertionError; the real ones any of
    these, and the packages that read annotations for an evaluation a KeyError of nothing but the missing key.

    Args:
        what: begins the message.
        file: the annotation file, for errors that name none.
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, AssertionError) as error:
        text = str(error.args[0]) if type(error) is KeyError and error.args else str(error)
        if type(error) is KeyError and " " not in text:
            text = f"an entry has no {text!r}, which is needed; write the file again"
        where = f"{file}: " if file and file not in text else ""
        raise InputError(f"{what}: {where}{text}") from error


@contextmanager
def explained_loading(path: str) -> Iterator[None]:
    """Inside of it, what goes wrong with reading the weights ``path`` becomes an :class:`InputError`."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"MODEL.WEIGHTS {path} not found; give an existing file, or '' for random weights") from error
    except OSError as error:  # of URLs that cannot be reached
        raise InputError(
            f"MODEL.WEIGHTS {path} cannot be read or fetched ({error}); download it where there is a network, and set "
            "MODEL.WEIGHTS to the file"
        ) from error
    except (ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"MODEL.WEIGHTS {path} cannot be used: {error}") from error
