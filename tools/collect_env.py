"""Say what this machine has and lacks: ``python tools/collect_env.py [--json]``.

Versions, devices, which detectron2 is in use, data sets found and missing, folders that can be written to. Imports
nothing that may be broken without guarding it, so that it also runs in an incomplete environment.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REQUIRED = (
    *("torch", "torchvision", "open_clip_torch", "timm", "fvcore", "iopath", "pycocotools", "lvis", "faster-coco-eval"),
    *("opencv-python", "scipy", "shapely", "numpy", "pillow", "safetensors", "ftfy", "regex", "tensorboard"),
    *("matplotlib", "tqdm", "PyYAML"),
)
OPTIONAL = ("pytest", "pytest-xdist", "ruff", "mypy", "wandb", "gradio")

# Shared library that OpenCV's wheel expects from the system -> Debian and Ubuntu package that has it.
SYSTEM_LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libSM.so.6": "libsm6",
    "libXext.so.6": "libxext6",
    "libXrender.so.1": "libxrender1",
    "libX11.so.6": "libx11-6",
}

# Data set -> what must exist below the root for it to count as found.
CLASSIFICATION_DATA = {
    "ImageNet21K": ["imagenet21k_resized/imagenet21k_train", "imagenet21k_resized/imagenet21k_val"],
    "ImageNet": ["imagenet/images/train", "imagenet/images/val"],
    "ImageNetV2": ["imagenetv2/imagenetv2-matched-frequency-format-val"],
    "ImageNetSketch": ["imagenet-sketch/images"],
    "ImageNetA": ["imagenet-adversarial/imagenet-a"],
    "ImageNetR": ["imagenet-rendition/imagenet-r"],
    "Caltech101": ["caltech-101/101_ObjectCategories"],
    "OxfordPets": ["oxford_pets/images"],
    "StanfordCars": ["stanford_cars/cars_train", "stanford_cars/cars_test"],
    "OxfordFlowers": ["oxford_flowers/jpg"],
    "Food101": ["food-101/images"],
    "FGVCAircraft": ["fgvc_aircraft/images", "fgvc_aircraft/variants.txt"],
    "SUN397": ["sun397/SUN397"],
    "DescribableTextures": ["dtd/images"],
    "EuroSAT": ["eurosat/2750"],
    "UCF101": ["ucf101/UCF-101-midframes"],
}
SCENE_DATA = {
    "coco": ["coco/train2017", "coco/val2017", "coco/annotations/instances_val2017.json"],
    "coco open-vocabulary": ["coco/zero-shot/instances_train2017_seen_2.json"],
    "lvis_v1": ["lvis/lvis_v1_train.json", "lvis/lvis_v1_val.json"],
    "objects365_v2": ["objects365/annotations/zhiyuan_objv2_val.json"],
    "openimages": ["oid/annotations/oid_challenge_2019_val_expanded.json"],
    "imagenet_lvis": ["imagenet/ImageNet-LVIS", "imagenet/annotations/imagenet_lvis_image_info.json"],
    "coco_stuff": ["coco/stuffthingmaps_detectron2/train2017", "coco/stuffthingmaps_detectron2/val2017"],
    "voc": ["VOC2012/JPEGImages", "VOC2012/annotations_detectron2"],
    "ade20k": ["ADEChallengeData2016/images", "ADEChallengeData2016/annotations_detectron2"],
    "ade20k_full": ["ADE20K_2021_17_01/images_detectron2", "ADE20K_2021_17_01/annotations_detectron2"],
    "pascal_context": ["pcontext/val/image", "pcontext/val/label"],
    "cityscapes": ["cityscapes/leftImg8bit", "cityscapes/gtFine"],
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--data-root", default="data", help="DATASET.ROOT of classification (default: data)")
    parser.add_argument("--output", default="output", help="folder for results (default: output)")
    options = parser.parse_args(argv)
    report = collect(Path(options.data_root), Path(options.output))
    print(json.dumps(report, indent=1) if options.json else as_text(report))
    return 0


def collect(data_root: Path, output: Path) -> dict[str, Any]:
    """Everything that the command prints, as plain values."""
    packages = {name: installed_version(name) for name in ("openvocab-prompt", *REQUIRED, *OPTIONAL)}
    scene_root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    opencv_problem = explain_opencv(opencv_error())
    problems = [f"{name} is not installed; run: make test" for name in REQUIRED if packages[name] is None]
    folders = [describe_folder(what, path) for what, path in used_folders(output)]
    problems += [
        f"{folder['path']} ({folder['what']}) cannot be written to" for folder in folders if not folder["writable"]
    ]
    detectron2 = detectron2_in_use()
    problems += [f"detectron2: {detectron2['problem']}"] if detectron2.get("problem") else []
    problems += [opencv_problem] if opencv_problem and packages["opencv-python"] else []
    return {
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "packages": packages,
        "detectron2": detectron2,
        **devices(),
        "data": {
            "classification": find_data(data_root, CLASSIFICATION_DATA),
            "detection and segmentation": find_data(scene_root, SCENE_DATA),
        },
        "folders": folders,
        "problems": problems,
    }


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def detectron2_in_use() -> dict[str, str | None]:
    """``source``: "installed" (a real detectron2), "bundled" (our stand-in), "missing" or "unusable"; its version.

    ``problem`` says why it is unusable: an unknown POMP_DETECTRON2, or one built for another torch.
    """
    try:
        import third_party
    except ModuleNotFoundError:  # run without installation: only a real one can be there
        if importlib.util.find_spec("detectron2") is None:
            return {"source": "missing", "version": None}
        return {"source": "installed", "version": installed_version("detectron2")}
    except (ImportError, ValueError) as error:
        return {"source": "unusable", "version": installed_version("detectron2"), "problem": str(error)}
    source = third_party.detectron2_source()
    if source == "installed":
        return {"source": source, "version": installed_version("detectron2")}
    text = (Path(third_party.__file__).parent / "detectron2" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)
    return {"source": source, "version": match[1] if match else None}


def devices() -> dict[str, Any]:
    """CPU cores, torch's threads and GPUs; torch may be absent or unable to start."""
    found: dict[str, Any] = {"cpu": {"cores": os.cpu_count(), "torch_threads": None}, "cuda": None, "gpus": []}
    try:
        import torch
    except (ImportError, OSError):
        return found
    found["cpu"]["torch_threads"] = torch.get_num_threads()
    found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            found["gpus"].append({"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)})
    return found


def opencv_error() -> str:
    """What ``import cv2`` complains about; "" if it works. In another process, since it may crash."""
    result = subprocess.run([sys.executable, "-c", "import cv2"], capture_output=True, text=True)
    return (result.stderr.strip().splitlines() or ["it crashed"])[-1] if result.returncode else ""


def explain_opencv(error: str) -> str | None:
    """One line with the cure for an error of ``import cv2``; None for no error."""
    if not error:
        return None
    for library, package in SYSTEM_LIBRARIES.items():
        if library in error:
            cure = f"on Debian or Ubuntu: apt-get install {package}"
            return f"import cv2 fails: the system library {library} is missing; {cure}"
    return f"import cv2 fails: {error}"


def find_data(root: Path, layouts: dict[str, list[str]]) -> dict[str, Any]:
    """Names of the data sets of which every expected path exists, and for each other one the paths it lacks."""
    missing = {name: [path for path in paths if not (root / path).exists()] for name, paths in layouts.items()}
    return {
        "root": str(root),
        "found": [name for name, paths in missing.items() if not paths],
        "missing": {name: paths for name, paths in missing.items() if paths},
    }


def used_folders(output: Path) -> list[tuple[str, Path]]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    return [
        ("results", output),
        ("image features and class embeddings", cache / "prompt_pretrain"),
        ("OpenAI CLIP weights", Path.home() / ".cache" / "clip"),
        ("other CLIP weights", hub),
    ]


def describe_folder(what: str, path: Path) -> dict[str, Any]:
    """Whether ``path`` can be written to or made, and how much space its disk has."""
    existing = path.resolve()
    while not existing.exists():
        existing = existing.parent
    return {
        "what": what,
        "path": str(path),
        "exists": path.exists(),
        "writable": existing.is_dir() and os.access(existing, os.W_OK | os.X_OK),
        "free_gb": round(shutil.disk_usage(existing).free / 1e9, 1),
    }


def as_text(report: dict[str, Any]) -> str:
    """The report for people: one fact per line."""
    detectron2 = report["detectron2"]
    gpus = [f"{gpu['name']} ({gpu['memory_gb']} GB)" for gpu in report["gpus"]] or ["none"]
    rows = [
        ("python", f"{report['python']['version']}  {report['python']['executable']}"),
        ("platform", report["platform"]),
        ("cpu", f"{report['cpu']['cores']} cores, torch uses {report['cpu']['torch_threads']} threads"),
        ("gpu", f"{', '.join(gpus)} (torch built for CUDA {report['cuda']})"),
        ("detectron2", " ".join(filter(None, [detectron2["source"], detectron2["version"]]))),
        *((name, version or "not installed") for name, version in report["packages"].items()),
    ]
    lines = [f"{name:18} {text}" for name, text in rows]
    for task, data in report["data"].items():
        lines.append(f"\n{task} data in {data['root']}" + ("" if os.path.isdir(data["root"]) else " (no such folder)"))
        lines += [f"  found    {name}" for name in data["found"]]
        lines += [f"  missing  {name:22} {', '.join(paths)}" for name, paths in data["missing"].items()]
    lines.append("\nfolders")
    for folder in report["folders"]:
        state = "writable" if folder["writable"] else "NOT WRITABLE"
        lines.append(f"  {state:12} {folder['free_gb']:8.1f} GB free  {folder['path']}  ({folder['what']})")
    lines += (
        ["", *(f"problem: {problem}" for problem in report["problems"])] if report["problems"] else ["\nno problems"]
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
