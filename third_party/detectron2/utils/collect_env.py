"""A table of the versions that matter in a report of a problem."""

import importlib
import importlib.metadata
import os
import platform
import sys

import torch
from tabulate import tabulate

import detectron2

__all__ = ["collect_env_info"]

_PACKAGES = (
    "torchvision",
    "fvcore",
    "iopath",
    "numpy",
    "Pillow",
    "opencv-python",
    "opencv-python-headless",
    "pycocotools",
)


def collect_env_info() -> str:
    """Versions of the system, Python, torch, CUDA, this package and those it builds on, and the GPUs, as a table."""
    rows = [
        ("platform", platform.platform()),
        ("Python", sys.version.replace("\n", "")),
        ("detectron2", f"{detectron2.__version__} @{os.path.dirname(detectron2.__file__)}"),
        ("DETECTRON2_DATASETS", os.environ.get("DETECTRON2_DATASETS", "not set")),
        ("PyTorch", f"{torch.__version__} @{os.path.dirname(torch.__file__)}"),
        ("PyTorch debug build", str(torch.version.debug)),
        ("CUDA of PyTorch", str(torch.version.cuda)),
        ("GPU available", str(torch.cuda.is_available())),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            rows.append((f"GPU {index}", f"{torch.cuda.get_device_name(index)} (compute capability {major}.{minor})"))
    rows += [(name, version) for name in _PACKAGES if (version := _version(name)) is not None]
    return tabulate(rows)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.stdout.write(collect_env_info() + "\n")
