"""Samplers, grouping, COCO loading, mapper and annotation helpers against recorded results."""

import itertools
import json
import re
from ast import literal_eval
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.config import get_cfg
from detectron2.data import (
    AspectRatioGroupedDataset,
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
)
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.datasets import load_coco_json, load_sem_seg, register_coco_instances
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from tests.golden_files import Golden

_BOX_TOLERANCE = 1e-3


@pytest.mark.golden("d2_data")
def test_data_pipeline_matches_reference(golden: Golden, tmp_path, monkeypatch):
    name = f"golden_data_{tmp_path.name}"
    try:
        _check_repeat_factors(golden.meta)
        _check_samplers(golden.meta, monkeypatch)
        _check_grouping(golden.meta["aspect_grouping"])
        records = _check_loading(golden.meta, tmp_path, name)
        _write_images(golden.meta, tmp_path)
        _check_mapper(golden.meta, records, tmp_path)
        _check_annotation_helpers(golden.meta)
        _check_reading(golden.meta, tmp_path)
        _check_conversion(golden.meta["convert_to_coco_json"], tmp_path, name)
        _check_sem_seg(golden.meta["load_sem_seg"], tmp_path)
    finally:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)


def _factors(meta: dict, key: str) -> torch.Tensor:
    thresh, sqrt = (literal_eval(part.split("=")[1]) for part in key.split(","))
    dicts = [{"annotations": [{"category_id": c} for c in classes]} for classes in meta["dataset_categories"]]
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, thresh, sqrt)


def _check_repeat_factors(meta: dict) -> None:
    for key, expected in meta["repeat_factors"].items():
        factors = _factors(meta, key)
        assert factors.dtype == torch.float32
        np.testing.assert_allclose(factors.numpy(), expected, rtol=1e-6)


def _take(sampler: Any, count: int) -> list[int]:
    return [int(index) for index in itertools.islice(sampler, count)]


def _check_samplers(meta: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    case = meta["repeat_sampler"]
    factors = _factors(meta, case["factors"])
    for key, first in case.items():
        if isinstance(first, list):  # "first_<n>" or "no_shuffle_first_<n>"
            sampler = RepeatFactorTrainingSampler(factors, shuffle=not key.startswith("no_shuffle"), seed=case["seed"])
            assert _take(sampler, len(first)) == first, key

    case = meta["training_sampler"]
    for key, first in case.items():
        if isinstance(first, list):
            seed = -1 if key.startswith("seed_minus_1") else case["seed"]
            sampler = TrainingSampler(case["size"], shuffle=not key.startswith("no_shuffle"), seed=seed)
            assert _take(sampler, len(first)) == first, key

    case = meta["subset_sampler"]
    seeds = {word: int(seed) for word, seed in (part.split() for part in case["seeds"].split(", "))}
    sampler = RandomSubsetTrainingSampler(
        case["size"], case["ratio"], seed_shuffle=seeds["shuffle"], seed_subset=seeds["subset"]
    )
    (first,) = (value for key, value in case.items() if key.startswith("first_"))
    assert _take(sampler, len(first)) == first

    for key, shards in meta["inference_sampler"].items():
        size, world_size = map(int, key.split(","))
        for rank, (start, end) in enumerate(shards):
            with monkeypatch.context() as patch:
                patch.setattr(comm, "get_rank", lambda rank=rank: rank)
                patch.setattr(comm, "get_world_size", lambda world_size=world_size: world_size)
                assert list(InferenceSampler(size)) == list(range(start, end))


def _check_grouping(case: dict) -> None:
    records = [{"width": width, "height": height, "n": n} for n, (width, height) in enumerate(case["wh"])]
    batches = [[record["n"] for record in batch] for batch in AspectRatioGroupedDataset(records, case["batch_size"])]
    assert batches == case["batches"]


def _check_loading(meta: dict, folder: Path, name: str) -> list[dict]:
    json_file = folder / "instances.json"
    json_file.write_text(json.dumps(meta["coco_json"]))
    expected = meta["metadata"]
    facts = {
        key: value
        for key, value in expected.items()
        if key not in ("thing_classes", "thing_dataset_id_to_contiguous_id", "evaluator_type", "image_root")
    }
    register_coco_instances(name, facts, str(json_file), expected["image_root"])
    records = DatasetCatalog.get(name)
    assert json.loads(json.dumps(records, default=bytes.decode)) == meta["loaded"]
    metadata = json.loads(json.dumps(MetadataCatalog.get(name).as_dict()))
    assert {key: metadata[key] for key in expected} == expected

    plain = load_coco_json(str(json_file), expected["image_root"])
    ids = [annotation["category_id"] for annotation in plain[0]["annotations"]]
    assert ids == meta["loaded_no_name_first_category_ids"]
    extra = load_coco_json(str(json_file), expected["image_root"], extra_annotation_keys=["extra"])
    assert [annotation["extra"] for annotation in extra[0]["annotations"]] == meta["loaded_extra_keys"]
    kept = filter_images_with_only_crowd_annotations(records)
    assert [record["image_id"] for record in kept] == meta["filtered_image_ids"]
    return records


def _write_images(meta: dict, folder: Path) -> None:
    for image in meta["coco_json"]["images"]:
        pixels = np.random.RandomState(image["id"]).randint(0, 256, (image["height"], image["width"], 3))
        path = folder / image["file_name"]
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path, format="png")


def _check_mapper(meta: dict, records: list[dict], folder: Path) -> None:
    root = meta["metadata"]["image_root"]
    records = [{**record, "file_name": record["file_name"].replace(root, str(folder))} for record in records]
    for case in meta["mapper_train"]:
        cfg = get_cfg()
        for assignment in case["config"]:
            key, value = assignment.split("=", 1)
            cfg.merge_from_list([key, literal_eval(value)])
        mapper = DatasetMapper(cfg, is_train=True)
        only_polygons = "polygon" in case["annotations_used"]
        first_seed = int(re.search(r"seed\((\d+) \+ position", case["seed"])[1])
        by_id = {record["image_id"]: record for record in records}
        for position, row in enumerate(case["rows"]):
            record = by_id[row["image_id"]]
            annotations = [
                annotation
                for annotation in record["annotations"]
                if "segmentation" in annotation and (isinstance(annotation["segmentation"], list) or not only_polygons)
            ]
            np.random.seed(first_seed + position)
            _check_train_row(mapper({**record, "annotations": annotations}), row)
    cfg = get_cfg()
    for assignment in meta["mapper_train"][0]["config"]:
        key, value = assignment.split("=", 1)
        cfg.merge_from_list([key, literal_eval(value)])
    mapper = DatasetMapper(cfg, is_train=False)
    for record, row in zip(records, meta["mapper_test"], strict=False):
        found = mapper(record)
        assert sorted(found) == row["keys"]
        assert list(found["image"].shape) == row["shape"]
        assert (found["height"], found["width"]) == (row["height"], row["width"])
        assert int(found["image"].sum()) == pytest.approx(row["sum"], rel=1e-3)


def _check_train_row(found: dict, row: dict) -> None:
    assert sorted(found) == row["keys"]
    assert list(found["image"].shape) == row["image_shape"]
    assert str(found["image"].dtype) == row["image_dtype"]
    assert int(found["image"].sum()) == pytest.approx(row["image_sum"], rel=1e-3)
    instances = found["instances"]
    assert sorted(instances.get_fields()) == row["fields"]
    assert len(instances) == row["n"]
    assert list(instances.image_size) == row["size"]
    assert instances.gt_classes.tolist() == row["classes"]
    assert instances.gt_classes.dtype == torch.int64
    boxes = np.array(row["boxes"]).reshape(-1, 4)
    np.testing.assert_allclose(instances.gt_boxes.tensor.numpy(), boxes, atol=_BOX_TOLERANCE)
    if "mask_areas" in row:
        masks = instances.gt_masks
        if isinstance(masks, BitMasks):
            assert masks.tensor.sum(dim=(1, 2)).tolist() == row["mask_areas"]
        else:
            np.testing.assert_allclose(masks.area().numpy(), row["mask_areas"], atol=2e-3, rtol=1e-5)


def _check_annotation_helpers(meta: dict) -> None:
    case = meta["transform_annotation"]
    sizes = [int(number) for part in case["transforms"].split() if "x" in part for number in part.strip(",").split("x")]
    old_h, old_w, new_h, new_w = sizes  # "resize 40x30 -> 60x60, then horizontal flip"
    transforms = T.TransformList([T.ResizeTransform(old_h, old_w, new_h, new_w), T.HFlipTransform(new_w)])
    found = utils.transform_instance_annotations(dict(case["in"]), transforms, (new_h, new_w))
    _compare(found, case["out"])

    case = meta["transform_annotation_clip"]
    annotation = {"bbox": [float(value) for value in case["in"]], "bbox_mode": 0, "category_id": 0}
    found = utils.transform_instance_annotations(annotation, T.TransformList([]), tuple(case["size"]))
    np.testing.assert_allclose(found["bbox"], case["out"])

    case = meta["filter_empty"]
    rows = [[2.0, 3.0, 12.0, 13.0] if kept else [5.0, 5.0, 5.0, 9.0] for kept in case["mask"]]
    kept_classes = iter(case["kept_classes"])
    classes = [next(kept_classes) if kept else 0 for kept in case["mask"]]
    instances = Instances((20, 20), gt_boxes=Boxes(torch.tensor(rows)), gt_classes=torch.tensor(classes))
    rest, mask = utils.filter_empty_instances(instances, return_mask=True)
    assert rest.gt_classes.tolist() == case["kept_classes"]
    assert mask.tolist() == case["mask"]


def _compare(found: dict, expected: dict) -> None:
    assert sorted(found) == sorted(expected)
    np.testing.assert_allclose(found["bbox"], expected["bbox"], atol=1e-6)
    np.testing.assert_allclose(np.array(found["segmentation"]), expected["segmentation"], atol=1e-6)
    for key in ("bbox_mode", "category_id", "iscrowd"):
        assert found[key] == expected[key]


def _check_reading(meta: dict, folder: Path) -> None:
    image = meta["coco_json"]["images"][0]
    for image_format, expected in meta["read_image"].items():
        found = utils.read_image(str(folder / image["file_name"]), format=image_format)
        assert list(found.shape) == expected["shape"]
        assert str(found.dtype) == expected["dtype"]
        assert float(found.sum()) == pytest.approx(expected["sum"], rel=1e-6)
        np.testing.assert_allclose(found[0, 0], expected["pixel00"], atol=1e-4)

    case = meta["exif_orientation"]
    for orientation, expected in case["result"].items():
        stored = Image.fromarray(np.array(case["source"], dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = int(orientation)
        path = folder / f"orientation{orientation}.png"
        stored.save(path, exif=exif)
        assert utils.read_image(str(path), format="L")[:, :, 0].tolist() == expected


def _check_conversion(case: dict, folder: Path, name: str) -> None:
    output = folder / "converted.json"
    convert_to_coco_json(name, str(output), allow_cached=False)
    content = json.loads(output.read_text())
    assert sorted(content) == case["keys"]
    assert content["images"][0] == case["first_image"]
    for found, expected in zip(content["annotations"], case["first_annotations"], strict=False):
        assert sorted(found) == sorted(expected)
        assert found["area"] == pytest.approx(expected["area"], rel=1e-6)
        np.testing.assert_allclose(found["bbox"], expected["bbox"], atol=1e-3)
        assert {key: found[key] for key in found if key not in ("area", "bbox")} == {
            key: expected[key] for key in expected if key not in ("area", "bbox")
        }


def _check_sem_seg(pairs: list[list[str]], folder: Path) -> None:
    images, labels = folder / "sem_seg_images", folder / "sem_seg_labels"
    for target in (images, labels):
        target.mkdir()
    for image, label_map in reversed(pairs):
        (images / image).touch()
        (labels / label_map).touch()
    (images / "unlabelled").with_suffix(Path(pairs[0][0]).suffix).touch()
    image_ext, gt_ext = (Path(name).suffix.removeprefix(".") for name in pairs[0])
    found = load_sem_seg(str(labels), str(images), gt_ext=gt_ext, image_ext=image_ext)
    names = [[Path(record["file_name"]).name, Path(record["sem_seg_file_name"]).name] for record in found]
    assert names == pairs
    assert all(set(record) == {"file_name", "sem_seg_file_name"} for record in found)
