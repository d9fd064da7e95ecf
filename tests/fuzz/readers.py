"""Every reader of a file that a user gives, with a valid example of the file: what the fuzz tests go through."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as to_safetensors
from torch import nn

import third_party
from prompt_pretrain.errors import InputError


@dataclass(frozen=True)
class Reader:
    """A function that reads one kind of file.

    Attributes:
        name: of the function, and of the file's form.
        file: name of the file that is damaged.
        example: a valid file: a tree for json, else its bytes or text.
        read: reads the file in the given folder.
        form: how it is damaged: ``json``, ``yaml``, ``lines`` or ``bytes``.
        errors: what it may raise; every one of them ends in exit code 2.
        others: further files in the folder, undamaged.
    """

    name: str
    file: str
    example: Any
    read: Callable[[Path], Any]
    form: str = "bytes"
    errors: tuple[type[Exception], ...] = (InputError,)
    others: Mapping[str, bytes] = field(default_factory=dict)

    def data(self) -> bytes:
        """The bytes of the valid file."""
        if self.form == "json":
            return json.dumps(self.example).encode()
        return self.example.encode() if isinstance(self.example, str) else self.example

    def __str__(self) -> str:
        return self.name


_THROUGH_DETECTRON2 = (
    *("load.", "read_image.", "label map.runtime", "CustomData.", "load_class_freq", "check_dataset."),
    *("detection.", "segmentation.", "train_net.", "resume_or_load"),
)
# What the stand-in for detectron2, which knows no InputError, may raise: the loaders of our packages and
# `prompt_pretrain.run_setup` turn it into one.
_RUNTIME = (ValueError,)

# ---- contents ----


def torch_bytes(content: Any, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def npy_bytes(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz_bytes(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def image_bytes(form: str, mode: str = "RGB", size: tuple[int, int] = (12, 9), **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    image = Image.fromarray(pixels) if mode == "RGB" else Image.fromarray(pixels[..., 0] % 3).convert(mode)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tar_bytes(members: Mapping[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


_JPEG, _PNG = image_bytes("JPEG"), image_bytes("PNG", "L")
_TAR = tar_bytes({"n1_1.JPEG": _JPEG, "n1_2.JPEG": gzip.compress(_JPEG), "x" * 120 + ".JPEG": _JPEG})
_WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}
_RUN = {"model": _WEIGHTS, "iteration": 3, "optimizer": {"state": {0: torch.zeros(2)}, "param_groups": [{"lr": 0.1}]}}
_PROMPT = {"state_dict": {"ctx": torch.ones(4, 8)}, "epoch": 1, "metadata": {"position": "end", "n_ctx": 4}}

_COCO: dict[str, Any] = {
    "info": {},
    "images": [
        {"id": 1, "file_name": "1.jpg", "height": 9, "width": 12, "coco_url": "http://x/train2017/1.jpg"}
        | {"neg_category_ids": [2], "not_exhaustive_category_ids": [1], "pos_category_ids": [1], "captions": ["a cat"]},
        {"id": 2, "file_name": "2.jpg", "height": 9, "width": 12, "coco_url": "http://x/train2017/2.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 3.5], "area": 14, "iscrowd": 0}
        | {"segmentation": [[1, 1, 5, 1, 5, 4.5]]},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}
        | {"segmentation": [[0, 0, 2, 0, 2, 2], [3, 3, 4, 4, 5, 5]]},
        {"id": 3, "image_id": 2, "category_id": 2, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 1},
    ],
    "categories": [
        {
            "id": 1,
            "name": "cat",
            "synonyms": ["cat", "kitty"],
            "frequency": "f",
            "image_count": 3,
            "synset": "cat.n.01",
        },
        {"id": 2, "name": "dog", "synonyms": ["dog"], "frequency": "r", "image_count": 2},
    ],
}
_RLE = {"size": [9, 12], "counts": [10, 20, 78]}
_TEXT_RLE = {"size": [9, 12], "counts": ":d0^2"}
_COCO_RLE = _COCO | {
    "annotations": [
        _COCO["annotations"][0] | {"segmentation": _RLE, "iscrowd": 1},
        _COCO["annotations"][1] | {"segmentation": _TEXT_RLE},
    ]
}


# ---- what reads them ----


def _cfg(path: Path) -> Any:
    from prompt_pretrain.config import load_cfg

    return load_cfg(path / "a.yaml")


def _task_cfg(task: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from importlib import import_module

        return import_module(f"{task}.setup").load_config(folder / "a.yaml", [])

    return read


def _train_net(folder: Path) -> Any:
    from tools.train_net import find_task, parse_args

    return find_task(parse_args(["--config-file", str(folder / "a.yaml")]))


def _vocabulary(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from prompt_pretrain.vocabulary import load_vocabulary

        return load_vocabulary(folder / name)

    return read


def _class_names(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from prompt_pretrain.classification.class_names import read_class_names

        return read_class_names(folder / name)

    return read


def _class_tree(folder: Path) -> Any:
    from prompt_pretrain.classification.class_tree import read_class_tree

    return read_class_tree(folder / "tree.pth")


def _few_shot(folder: Path) -> Any:
    from prompt_pretrain.classification.few_shot import _content_hash, saved_few_shot_split
    from prompt_pretrain.classification.items import ImageItem

    file = folder / "split" / "shot_1-seed_0.json"
    try:
        # A file that was changed by one who knows how to make its hash.
        content = json.loads(file.read_bytes())
        file.write_text(json.dumps(content | {"sha256": _content_hash(content)}))
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    items = [ImageItem(str(folder / "a" / "1.jpg"), 0), ImageItem(str(folder / "b" / "1.jpg"), 1)]
    return saved_few_shot_split(folder / "split", items, None, 1, 0)


def _prompt(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from prompt_pretrain.prompt import load_prompt

        return load_prompt(folder / name)

    return read


def _stage_1_prompt(folder: Path) -> Any:
    from segmentation.prompt_learners import TwoSidedPrompt, _load

    return _load(TwoSidedPrompt(8, (2, 2)), str(folder / "a.pth"), "PROMPT_CHECKPOINT", released=False)


def _embeddings(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from prompt_pretrain.class_embeddings import ClassEmbeddings

        return ClassEmbeddings.load(folder / name)

    return read


def _clip(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from prompt_pretrain.clip import load_clip

        return load_clip(folder / name)

    return read


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))
        self.bias = nn.Parameter(torch.zeros(2))


def _weights(checkpointer: str, name: str) -> Callable[[Path], Any]:
    """MODEL.WEIGHTS, as trainings and evaluations load it."""

    def read(folder: Path) -> Any:
        from detection.checkpoint import DeticCheckpointer
        from prompt_pretrain.run_setup import explained_loading
        from segmentation.checkpoint import SegmentationCheckpointer

        kinds = {"detection": DeticCheckpointer, "segmentation": SegmentationCheckpointer}
        with explained_loading(str(folder / name)):
            return kinds[checkpointer](_Model(), str(folder)).load(str(folder / name), checkpointables=[])

    return read


def _resume(folder: Path) -> Any:
    from detection.checkpoint import DeticCheckpointer
    from prompt_pretrain.run_setup import explained_loading

    with explained_loading(str(folder)):
        return DeticCheckpointer(_Model(), str(folder)).resume_or_load("", resume=True)


def _read_checkpoint(folder: Path) -> Any:
    from detection.checkpoint import read_checkpoint

    return read_checkpoint(str(folder / "a.pth"))


def _class_counts(folder: Path) -> Any:
    from detection.class_counts import _classes_in_checkpoint

    return _classes_in_checkpoint(str(folder / "a.pth"))


def _training_state(folder: Path) -> Any:
    from prompt_pretrain.checkpoints import CheckpointFolder

    return CheckpointFolder(folder).load()


def _detection_json(loader: str) -> Callable[[Path], Any]:
    """Loads a json, and makes the training targets of what it says."""

    def read(folder: Path) -> Any:
        from detection.data.datasets.extended_lvis import custom_load_lvis_json
        from detection.data.datasets.oid import load_oid_json
        from detectron2.data.catalog import MetadataCatalog
        from detectron2.data.datasets.coco import load_coco_json
        from detectron2.data.datasets.lvis import load_lvis_json

        loaders = {"coco": load_coco_json, "lvis": load_lvis_json}
        loaders |= {"extended_lvis": custom_load_lvis_json, "oid": load_oid_json}
        name = "fuzzed_data"
        try:
            records = loaders[loader](str(folder / "a.json"), str(folder), name)
        finally:
            if name in MetadataCatalog.list():
                MetadataCatalog.remove(name)
        _targets(records)
        return records

    return read


def _targets(records: list[dict[str, Any]]) -> None:
    from detectron2.data.detection_utils import annotations_to_instances, transform_instance_annotations
    from detectron2.data.transforms import NoOpTransform

    for record in records:
        size = (record["height"], record["width"])
        for masks in ("polygon", "bitmask"):
            entries = [dict(entry) for entry in record["annotations"] if not entry.get("iscrowd")]
            entries = [transform_instance_annotations(entry, NoOpTransform(), size) for entry in entries]
            rle = any(not isinstance(entry.get("segmentation", []), list) for entry in entries)
            some, every = (check("segmentation" in entry for entry in entries) for check in (any, all))
            if (masks == "polygon" and rle) or some != every:
                continue
            if size[0] * size[1] < 10_000:  # the mapper compares the size with the image's first
                annotations_to_instances(entries, size, mask_format=masks)


def _custom_coco(folder: Path) -> Any:
    from detection.custom_data import CustomData

    return CustomData.read(folder / "a.json", folder)


def _check_annotations(style: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from dataset_checks.annotations import check_annotation_file
        from dataset_checks.report import Report

        return check_annotation_file(Report("x"), str(folder / "a.json"), str(folder), style)

    return read


def _class_frequencies(folder: Path) -> Any:
    from centernet.modeling.roi_heads.fed_loss import load_class_freq

    return load_class_freq(str(folder / "a.json"))


def _tar_data(folder: Path) -> Any:
    from detection.data.tar_dataset import DiskTarDataset

    (folder / "files.npy").write_bytes(npy_bytes(np.array([str(folder / "n1.tar")])))
    data = DiskTarDataset(folder / "files.npy", folder)
    return [data[index] for index in range(min(len(data), 4))]


def _tar_list(folder: Path) -> Any:
    from detection.data.tar_dataset import DiskTarDataset

    return DiskTarDataset(folder / "files.npy", folder)


def _tar_images(folder: Path) -> Any:
    from prompt_pretrain.classification.decoding import ImageError, open_image
    from prompt_pretrain.classification.tar_archives import _indexes, open_index

    archive = str(folder / "n1.tar")
    _indexes.clear()
    for name in open_index(archive).names[:4].tolist():
        with suppress(ImageError):
            open_image(f"{archive}::{name.decode('utf-8', 'surrogateescape')}")


def _tar_cache(folder: Path) -> Any:
    from prompt_pretrain.classification import tar_archives
    from prompt_pretrain.classification.cache_folder import cache_file

    archive = str(folder / "n1.tar")
    tar_archives._indexes.clear()
    cache = cache_file("tar_indexes", archive, ".npz")
    cache.parent.mkdir(parents=True, exist_ok=True)
    stamp = (folder / "n1.tar").stat()
    with np.load(io.BytesIO(_TAR_INDEX)) as valid:
        arrays = dict(valid)
    arrays["stamp"] = np.array([stamp.st_size, stamp.st_mtime_ns], dtype=np.int64)
    damaged = (folder / "index.npz").read_bytes()
    try:
        with np.load(io.BytesIO(damaged), allow_pickle=False) as found:
            arrays |= {name: found[name] for name in ("names", "offsets", "sizes")}
        cache.write_bytes(npz_bytes(**arrays))
    except Exception:
        cache.write_bytes(damaged)
    return _tar_images(folder)


def _unpack(folder: Path) -> Any:
    from prepare_imagenet_lvis import unpack

    from prompt_pretrain.classification.tar_archives import _indexes

    _indexes.clear()
    return unpack(folder / "n1.tar", folder / "out")


def _tar_offsets(folder: Path) -> Any:
    from prepare_imagenet21k import find_images

    return find_images(folder / "n1.tar")


def _image(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from prompt_pretrain.classification.decoding import open_image

        return open_image(str(folder / name))

    return read


def _detection_image(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from detectron2.data.detection_utils import read_image

        return read_image(str(folder / name), "BGR")

    return read


def _inputs(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from prompt_pretrain.image_inputs import open_inputs

        return list(zip(range(40), open_inputs(folder / name).images, strict=False))

    return read


def _label_map(which: str, name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from preparation.label_maps import read_map

        from mask_former.data.label_maps import read_labels
        from segmentation.evaluation.label_maps import read_label_map

        path = folder / name
        if which == "training":
            return read_labels(str(path), np.zeros((9, 12, 3)), 150, 255)
        if which == "runtime":
            from detectron2.data.label_maps import read_label_map as read_runtime_map

            return read_runtime_map(str(path))
        return read_label_map(str(path)) if which == "evaluation" else read_map(path)

    return read


def _label_counts(folder: Path) -> Any:
    from segmentation.data.datasets.pairs import load_binary_mask

    return load_binary_mask(str(folder / "maps"), str(folder / "images"))


def _pseudo_labels(folder: Path) -> Any:
    from segmentation.pseudo_label_maps import write_pseudo_label_maps

    return write_pseudo_label_maps(folder / "a.json", folder / "out", {0: 0, 1: 1})


def _proposals(folder: Path) -> Any:
    from segmentation.ablations.proposal_based import read_regions

    return read_regions(folder / "1.npy")


def _world_classes(folder: Path) -> Any:
    from segmentation.data.datasets.shapeworld import _reader

    return _reader(folder, "coco_stuff", seen_only=True)()


def _recipe(folder: Path) -> Any:
    from prompt_pretrain.shapeworld.world_folder import WorldFolder

    return WorldFolder(folder / "world", {"format": 1, "kind": "voc", "seed": 0}).is_finished()


def _metrics(folder: Path) -> Any:
    from prompt_pretrain.metrics_log import drop_rows_from, read_metrics

    drop_rows_from(folder / "metrics.json", 3)
    return read_metrics(folder / "metrics.json", "train")


def _metrics_log(folder: Path) -> Any:
    from prompt_pretrain.metrics_log import MetricsLog

    MetricsLog(folder, tensorboard=False, step=2).close()


def _feature_cache(folder: Path) -> Any:
    from prompt_pretrain.feature_cache import _Job, _open

    description = {"key": "key", "shape": [2, 1, 4]}
    job = _Job(folder, description, [])
    if job.is_complete():
        return _open(job, np.zeros(2, np.int64), "skip").features.sum()
    return None


def _hierarchy(folder: Path) -> Any:
    from detection.evaluation.oid import read_ancestors

    return read_ancestors(str(folder / "a.json"), ["/m/a", "/m/b"])


def _challenge_hierarchy(folder: Path) -> Any:
    from prepare_openimages import read_hierarchy

    return read_hierarchy(folder / "a.json")


def _challenge_csv(folder: Path) -> Any:
    from preparation.annotation_files import about
    from prepare_openimages import Annotations, read_csv

    found = Annotations({"/m/a": 1})
    with about(folder / "a.csv"):
        for row in read_csv(folder / "a.csv", tuple(_CSV.splitlines()[0].split(","))):
            found.add_box(row)
    return found


def _corrections(folder: Path) -> Any:
    from prepare_objects365 import read_corrections

    return read_corrections(str(folder / "a.csv"))


def _name_list(folder: Path) -> Any:
    from prepare_voc import read_names

    return read_names(folder / "a.txt")


def _captions(folder: Path) -> Any:
    from prepare_captions import list_captioned_images

    return list_captioned_images(folder / "a.tsv", folder, 1)


def _context_masks(folder: Path) -> Any:
    from prepare_pcontext import paint, read_json

    content = read_json(folder / "a.json", True)
    for image in content["images"]:
        rows = [row for row in content["annos_segmentation"] if row["image_id"] == image["image_id"]]
        paint(rows, f"{folder / 'a.json'}: image {image['image_id']}")


def _preparation(step: str) -> Callable[[Path], Any]:
    """A command of ``datasets/`` from a COCO-style json to another."""

    def read(folder: Path) -> Any:
        from importlib import import_module

        module, *arguments = step.split()
        places = {"IN": str(folder / "a.json"), "OUT": str(folder / "out.json"), "DIR": str(folder)}
        return import_module(module).main([places.get(each, each) for each in arguments])

    return read


def _timings(folder: Path) -> Any:
    from prompt_pretrain.quickstart.timings import Timings

    timings = Timings(folder / "a.json")
    with timings.step("train"):
        pass
    return timings.seconds


_CLIP_CONFIG = {
    "embed_dim": 8,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "patch_size": 4, "head_width": 4},
    "text_cfg": {"context_length": 8, "vocab_size": 99, "width": 8, "heads": 2, "layers": 1},
}
_CSV = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n1,/m/a,0.1,0.2,0.3,0.4,0\n2,/m/a,0,1,0,1,1\n"
_TAR_INDEX = npz_bytes(
    names=np.array([b"n1_1.JPEG"]), offsets=np.array([512]), sizes=np.array([len(_JPEG)]), stamp=np.zeros(2, np.int64)
)


@lru_cache(maxsize=1)
def readers() -> tuple[Reader, ...]:
    """All of them; with the real detectron2, whose own readers promise less, those that do without it."""
    found = (*_texts(), *_annotations(), *_arrays(), *_checkpoints(), *_images_and_archives(), *_runs())
    if third_party.detectron2_source() == "bundled":
        return found
    return tuple(reader for reader in found if not reader.name.startswith(_THROUGH_DETECTRON2))


def reader_named(name: str) -> Reader:
    """One of `readers`; skips the test where the real detectron2 has a part in it."""
    found = [reader for reader in readers() if reader.name == name]
    if not found:
        pytest.skip(f"the real detectron2 has a part in {name}")
    return found[0]


def _texts() -> list[Reader]:
    configs = Path(__file__).parents[2] / "configs"
    pomp = (configs / "prompt_pretrain" / "shapeworld_tiny.yaml").read_text()
    pomp = "\n".join(line for line in pomp.splitlines() if not line.startswith("_BASE_"))
    detection = (configs / "detection" / "Base-C2_L_R5021k_640b64_4x.yaml").read_text()
    segmentation = (configs / "segmentation" / "parts" / "proposal_classification.yaml").read_text()
    segmentation = "\n".join(line for line in segmentation.splitlines() if not line.startswith("_BASE_"))
    names = "# names\nred car\ntraffic cone\ndog\n"
    wordnet = "n01440764 tench\nn01443537 goldfish, fish\nn01484850 great white shark\n"
    return [
        Reader("load_cfg", "a.yaml", pomp, _cfg, "yaml"),
        Reader("detection.load_config", "a.yaml", detection, _task_cfg("detection"), "yaml"),
        Reader("segmentation.load_config", "a.yaml", segmentation, _task_cfg("segmentation"), "yaml"),
        Reader("train_net.find_task", "a.yaml", detection, _train_net, "yaml"),
        Reader("load_vocabulary.txt", "a.txt", names, _vocabulary("a.txt"), "lines"),
        Reader("load_vocabulary.wnids", "a.txt", wordnet, _vocabulary("a.txt"), "lines"),
        Reader("load_vocabulary.list", "a.json", ["red car", "dog"], _vocabulary("a.json"), "json"),
        Reader("load_vocabulary.coco", "a.json", {"categories": _COCO["categories"]}, _vocabulary("a.json"), "json"),
        Reader("read_class_names.txt", "a.txt", wordnet, _class_names("a.txt"), "lines"),
        Reader("read_class_names.json", "a.json", {"0": ["n01", "tench"]}, _class_names("a.json"), "json"),
        Reader("load_clip.config", "a.json", _CLIP_CONFIG, _clip("a.json"), "json"),
        Reader("read_names", "a.txt", "2007_000032\nJPEGImages/2007_000039.jpg 1\n", _name_list, "lines"),
        Reader("read_corrections", "a.csv", "id,old,new\n1,Person,Person\n2,Sneakers,Sneaker\n", _corrections, "lines"),
        Reader("read_csv", "a.csv", _CSV, _challenge_csv, "lines"),
        Reader(
            "list_captioned_images",
            "a.tsv",
            "a cat\thttp://x\na dog\thttp://y\n",
            _captions,
            "lines",
            others={"1.jpg": _JPEG},
        ),
    ]


def _annotations() -> list[Reader]:
    split = {"format": "few-shot split 1", "num_shots": 1, "seed": 0, "train": [["a/1.jpg", 0], ["b/1.jpg", 1]]}
    tree = {"LabelName": "/m/0", "Subcategory": [{"LabelName": "/m/a", "Subcategory": [{"LabelName": "/m/b"}]}]}
    context = {"images": [{"image_id": 1, "file_name": "1.jpg", "phase": "train"}]}
    context |= {"annos_segmentation": [{"image_id": 1, "category_id": 2, "segmentation": _RLE}]}
    predictions = [{"file_name": "x/1.jpg", "category_id": 1, "segmentation": _TEXT_RLE}]
    classes = [{"name": "sand", "split": "base"}, {"name": "sea", "split": "novel"}]
    maps = {"maps/1.png": _PNG, "images/1.jpg": _JPEG}
    lvis = _COCO | {"annotations": _COCO["annotations"][:2]}
    steps = ("prepare_captions coco --input IN --output OUT", "prepare_captions cc3m-tags --input IN --output OUT")
    steps += (
        "prepare_coco_zeroshot oriorder IN --categories IN --output OUT",
        "prepare_lvis norare --input IN --output OUT",
    )
    steps += (
        "prepare_lvis minival --input IN --output OUT",
        "prepare_lvis merge-coco --input IN --coco IN --output OUT",
    )
    steps += (
        "prepare_lvis cat-info IN --output OUT --add-freq",
        "prepare_objects365 fix-names --input IN --output OUT",
    )
    steps += ("prepare_objects365 filter-missing --input IN --images DIR --output OUT",)
    steps += ("prepare_imagenet21k merge-lvis --lvis IN --imagenet IN",)
    objects = {"categories": [{"id": 1, "name": "Person"}, {"id": 2, "name": "Sneakers"}]}
    captions = _COCO | {"annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]}
    joint = _COCO | {"categories": [row | {"synset": f"{row['name']}.n.01"} for row in _COCO["categories"]]}
    contents = {
        "prepare_imagenet21k merge-lvis": joint,
        "prepare_objects365 fix-names": _COCO | objects,
        "prepare_captions coco": captions,
    }
    return [
        *(
            Reader(f"load.{kind}", "a.json", lvis, _detection_json(kind), "json", _RUNTIME)
            for kind in ("lvis", "extended_lvis")
        ),
        *(Reader(f"load.{kind}", "a.json", _COCO, _detection_json(kind), "json", _RUNTIME) for kind in ("coco", "oid")),
        *(
            Reader(f"load.{kind}.rle", "a.json", _COCO_RLE, _detection_json(kind), "json", _RUNTIME)
            for kind in ("coco", "oid")
        ),
        Reader("CustomData.read", "a.json", _COCO, _custom_coco, "json", others={"1.jpg": _JPEG}),
        *(
            Reader(f"check_dataset.{style}", "a.json", _COCO, _check_annotations(style), "json")
            for style in ("coco", "lvis", "image_labels", "oid")
        ),
        Reader("load_class_freq", "a.json", _COCO["categories"], _class_frequencies, "json", _RUNTIME),
        Reader("saved_few_shot_split", "split/shot_1-seed_0.json", split, _few_shot, "json"),
        Reader("load_binary_mask", "maps_label_count.json", {"1.png": [0, 1]}, _label_counts, "json", others=maps),
        Reader("write_pseudo_label_maps", "a.json", predictions, _pseudo_labels, "json"),
        Reader("shapeworld.classes", "classes.json", classes, _world_classes, "json"),
        Reader("WorldFolder", "world/shapeworld.json", {"format": 1, "kind": "voc", "seed": 0}, _recipe, "json"),
        Reader("class_ancestors", "a.json", tree, _hierarchy, "json"),
        Reader("read_hierarchy", "a.json", tree, _challenge_hierarchy, "json"),
        Reader("prepare_pcontext", "a.json", context, _context_masks, "json"),
        *(
            Reader(name, "a.json", contents.get(name, _COCO), _preparation(step), "json", others={"1.jpg": _JPEG})
            for step in steps
            for name in [" ".join(step.split()[:2])]
        ),
    ]


def _arrays() -> list[Reader]:
    embeddings = {"embeddings": torch.ones(2, 8)}
    named = to_safetensors(embeddings, {"class_names": '["cat", "dog"]', "clip_id": "x"})
    tree = {"class_list": ["n1", "n2"], "class_description": {"n1": "a", "n2": "b"}, "class_tree_list": [[0], [1, 0]]}
    tar = {"n1_offsets.npy": npy_bytes(np.array([0, 3]))}
    return [
        Reader("load_prompt.pth", "a.pth", torch_bytes(_PROMPT), _prompt("a.pth")),
        Reader("load_prompt.legacy", "a.pth.tar-5", torch_bytes(_PROMPT, zipped=False), _prompt("a.pth.tar-5")),
        Reader("load_prompt.npy", "a.npy", npy_bytes(np.ones((4, 8), np.float32)), _prompt("a.npy")),
        Reader(
            "load_prompt.safetensors",
            "a.safetensors",
            to_safetensors({"ctx": torch.ones(4, 8)}, {"position": "end"}),
            _prompt("a.safetensors"),
        ),
        Reader("ClassEmbeddings.npy", "a.npy", npy_bytes(np.ones((2, 8), np.float32)), _embeddings("a.npy")),
        Reader("ClassEmbeddings.safetensors", "a.safetensors", named, _embeddings("a.safetensors")),
        Reader("ClassEmbeddings.pth", "a.pth", torch_bytes(torch.ones(2, 8)), _embeddings("a.pth")),
        Reader("read_class_tree", "tree.pth", torch_bytes(tree), _class_tree),
        Reader("read_regions", "1.npy", npy_bytes(np.zeros((3, 4), np.int64)), _proposals),
        Reader("DiskTarDataset.files", "files.npy", npy_bytes(np.array(["n1.tar"])), _tar_list, others=tar),
        Reader(
            "DiskTarDataset.offsets", "n1_offsets.npy", npy_bytes(np.array([0, 3])), _tar_data, others={"n1.tar": _TAR}
        ),
        Reader("tar index cache", "index.npz", _TAR_INDEX, _tar_cache, others={"n1.tar": _TAR}),
        Reader(
            "feature cache",
            "key/header.json",
            {"key": "key", "shape": [2, 1, 4]},
            _feature_cache,
            "json",
            others={"key/features.bin": bytes(16), "key/states.bin": b"\1\1"},
        ),
    ]


def _checkpoints() -> list[Reader]:
    from prompt_pretrain.clip import clip_from_config

    beside = {"open_clip_config.json": json.dumps(_CLIP_CONFIG).encode()}
    state = torch_bytes({"state_dict": clip_from_config(_CLIP_CONFIG).model.state_dict()})
    rows = []
    for task in ("detection", "segmentation"):
        rows += [
            Reader(f"{task}.pth", "a.pth", torch_bytes(_RUN), _weights(task, "a.pth")),
            Reader(f"{task}.pth.legacy", "a.pth", torch_bytes(_RUN, zipped=False), _weights(task, "a.pth")),
            Reader(f"{task}.safetensors", "a.safetensors", to_safetensors(_WEIGHTS), _weights(task, "a.safetensors")),
            Reader(f"{task}.pkl", "a.pkl", _pickled_arrays(), _weights(task, "a.pkl")),
        ]
    stage_1 = {
        "model": {"prompt_learner.prefix_prompt": torch.ones(2, 8), "prompt_learner.suffix_prompt": torch.ones(2, 8)}
    }
    clip = Path(__file__).parents[2] / "prompt_pretrain" / "shapeworld" / "tiny_clip.safetensors"
    return [
        *rows,
        Reader("read_checkpoint", "a.pth", torch_bytes(_RUN), _read_checkpoint),
        Reader("_classes_in_checkpoint", "a.pth", torch_bytes(_RUN), _class_counts),
        Reader("stage-1 prompt", "a.pth", torch_bytes(stage_1), _stage_1_prompt),
        Reader("load_clip.safetensors", "a.safetensors", clip.read_bytes(), _clip("a.safetensors")),
        Reader("load_clip.pth", "a.pth", state, _clip("a.pth"), others=beside),
    ]


def _pickled_arrays() -> bytes:
    import pickle

    arrays = {name: value.numpy() for name, value in _WEIGHTS.items()}
    return pickle.dumps({"model": arrays, "__author__": "x", "matching_heuristics": True}, protocol=2)


def _images_and_archives() -> list[Reader]:
    rows = []
    for form, ending in (
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("TIFF", "tif"),
        ("BMP", "bmp"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
    ):
        data = image_bytes(form)
        rows.append(Reader(f"open_image.{ending}", f"a.{ending}", data, _image(f"a.{ending}")))
        rows.append(
            Reader(f"read_image.{ending}", f"a.{ending}", data, _detection_image(f"a.{ending}"), errors=_RUNTIME)
        )
        rows.append(Reader(f"open_inputs.{ending}", f"a.{ending}", data, _inputs(f"a.{ending}")))
    for which in ("training", "evaluation", "runtime", "preparation"):
        for form, ending, mode in (("PNG", "png", "L"), ("PNG", "png", "P"), ("TIFF", "tif", "I;16")):
            data = image_bytes(form, mode)
            rows.append(
                Reader(
                    f"label map.{which}.{ending}.{mode}",
                    f"a.{ending}",
                    data,
                    _label_map(which, f"a.{ending}"),
                    errors=_RUNTIME,
                )
            )
    pax = tar_bytes({"é" * 60 + ".JPEG": _JPEG, "b.JPEG": _JPEG}, tarfile.PAX_FORMAT)
    offsets = {"n1_offsets.npy": npy_bytes(np.array([0, 3, 6]))}
    return [
        *rows,
        Reader("tar images", "n1.tar", _TAR, _tar_images),
        Reader("tar images.pax", "n1.tar", pax, _tar_images),
        Reader("unpack", "n1.tar", _TAR, _unpack),
        Reader("find_images", "n1.tar", _TAR, _tar_offsets),
        Reader("DiskTarDataset", "n1.tar", _TAR, _tar_data, others=offsets),
    ]


def _runs() -> list[Reader]:
    rows = "".join(json.dumps({"step": n, "kind": "train", "iteration": n, "loss": 0.5}) + "\n" for n in range(5))
    run = {"model_0000002.pth": torch_bytes(_RUN)}
    timings = {"train": {"seconds": 1.0, "done": False}}
    return [
        Reader("resume_or_load", "last_checkpoint", "model_0000002.pth", _resume, "lines", others=run),
        Reader(
            "resume_or_load.file",
            "model_0000002.pth",
            torch_bytes(_RUN),
            _resume,
            others={"last_checkpoint": b"model_0000002.pth"},
        ),
        Reader("CheckpointFolder.load", "state-00000001.pth", _signed_state(), _training_state),
        Reader("read_metrics", "metrics.json", rows, _metrics, "lines"),
        Reader("MetricsLog", "metrics.jsonl", rows, _metrics_log, "lines"),
        Reader("Timings", "a.json", timings, _timings, "json"),
    ]


def _signed_state() -> bytes:
    import hashlib

    from prompt_pretrain.checkpoints import _FORMAT

    body = torch_bytes({"format": _FORMAT, "step": 1, "prompt": torch.zeros(2)})
    return body + hashlib.sha256(body).digest()
