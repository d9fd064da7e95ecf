"""ShapeWorld as segmentation data, in the layouts of COCO-Stuff, VOC, ADE20K and PASCAL-Context; below ``shapeworld/``.

``tools/shapeworld_segmentation.py`` draws it, and ``tools/make_shapeworld.py --kind coco_stuff`` (voc, ade20k,
pascal_context) each world by itself. Registered names::

    shapeworld_stuff_sem_seg_{train,val}            all classes; novel things are the unseen ones
    shapeworld_stuff_base_sem_seg_{train,val}       without novel things
    …_classification                                the same, one record per class of an image
    shapeworld_{voc,ade20k,pcontext}_sem_seg_{train,val}   other scenes with other vocabularies
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from prompt_pretrain.errors import InputError
from prompt_pretrain.lazy_metadata import register_lazy_metadata
from prompt_pretrain.shapeworld.label_map_writers import BASE, FORMATS
from prompt_pretrain.shapeworld.scene_files import folder_of
from prompt_pretrain.shapeworld.scenes import SCENE_SPLITS
from segmentation.data.datasets.pairs import load_binary_mask, load_sem_seg

__all__ = ["FOLDER", "register_shapeworld"]
FOLDER = "shapeworld"
_LAZY = ("stuff_", "trainable_flag", "evaluation_set")  # facts about classes
_NAMES = {"coco_stuff": "stuff", "voc": "voc", "ade20k": "ade20k", "pascal_context": "pcontext"}


def register_shapeworld(root: str | os.PathLike) -> None:
    """Register the names above with files below ``root/shapeworld``, which need not exist."""
    for kind, short in _NAMES.items():
        world, layout = Path(root) / FOLDER / kind, FORMATS[kind]
        for part in ("", BASE) if layout.with_base else ("",):
            for split in SCENE_SPLITS:
                name = f"shapeworld_{short}{part}_sem_seg_{split}"
                images, labels = folder_of(world, layout.images, split), folder_of(world, layout.labels + part, split)
                facts = _reader(world, kind, seen_only=bool(part))
                _register(name, images, labels, facts, load_sem_seg, "sem_seg")
                if layout.with_base:
                    _register(f"{name}_classification", images, labels, facts, load_binary_mask, "classification")


def _register(
    name: str,
    images: Path,
    labels: Path,
    facts: Callable[[], dict[str, Any]],
    load: Callable[..., list[dict[str, Any]]],
    evaluator_type: str,
) -> None:
    register_lazy_metadata(MetadataCatalog, name, facts, _LAZY)
    MetadataCatalog.get(name).set(
        image_root=str(images), sem_seg_root=str(labels), evaluator_type=evaluator_type, ignore_label=255
    )
    DatasetCatalog.register(name, lambda: load(str(labels), str(images), gt_ext="png", image_ext="jpg"))


def _reader(world: Path, kind: str, *, seen_only: bool) -> Callable[[], dict[str, Any]]:
    """Facts about the classes of a drawn world; foreign sets have no seen classes, as published."""

    def read() -> dict[str, Any]:
        path = world / "classes.json"
        if not path.is_file():
            raise InputError(
                f"no {path}; draw the world with tools/make_shapeworld.py --kind {kind} --output {world}, or all of "
                "them with tools/shapeworld_segmentation.py"
            )
        try:
            classes = json.loads(path.read_text(encoding="utf-8"))
            flags = [int(entry["split"] == "base") for entry in classes]
            names = [entry["name"] for entry in classes]
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise InputError(f"{path} is damaged ({error!r}); delete {world} and draw the world again") from error
        if not all(isinstance(name, str) for name in names):
            raise InputError(f"{path} has classes whose names are no text; delete {world} and draw the world again")
        if kind != "coco_stuff":
            return {"stuff_classes": names}
        base = [label for label, flag in enumerate(flags) if flag]
        if seen_only:
            return {"stuff_classes": [names[label] for label in base], "trainable_flag": [1] * len(base)}
        return {"stuff_classes": names, "trainable_flag": flags, "evaluation_set": {"base": base}}

    return read
