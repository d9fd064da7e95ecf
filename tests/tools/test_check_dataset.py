"""The data-set checker on made-up data sets, one flaw of each kind in them."""

import importlib
import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

import detection  # noqa: F401  makes detectron2 importable, and registers now rather than inside a test
import segmentation  # noqa: F401
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_lvis_instances
from detectron2.structures import BoxMode
from prompt_pretrain.command_line import run_command

TOOLS = Path(__file__).parents[2] / "tools"
TRIANGLE = [[2, 2, 12, 2, 12, 12]]


@pytest.fixture
def tool(monkeypatch):
    """The command's module, and clean catalogs afterwards."""
    monkeypatch.syspath_prepend(str(TOOLS))
    known = DatasetCatalog.list(), MetadataCatalog.list()
    yield importlib.import_module("check_dataset")
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), known, strict=True):
        for name in set(catalog.list()) - set(names):
            catalog.remove(name)


def write_image(path: Path, width: int = 30, height: int = 20, mode: str = "RGB", value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), value).save(path)


def write_coco(folder: Path, annotations: list[dict], **content) -> str:
    """Two 30x20 images a.png, b.png and two categories with ids 5, 9; returns the json."""
    for name in ("a.png", "b.png"):
        write_image(folder / "images" / name)
    good = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [2, 2, 10, 10], "iscrowd": 0, "segmentation": TRIANGLE}
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 30, "height": 20},
            {"id": 2, "file_name": "b.png", "width": 30, "height": 20},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 5, "name": "cat"}],
        "annotations": [good, *({**good, **changes} for changes in annotations)],
        **content,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return str(path)


def register(folder: Path, annotations: list[dict] = (), name: str = "checked_coco", **content) -> str:
    register_coco_instances(name, {}, write_coco(folder, list(annotations), **content), str(folder / "images"))
    return name


def kinds(report) -> dict[str, int]:
    return {kind: finding.count for kind, finding in report.findings.items()}


def message(report, kind: str) -> str:
    return report.findings[kind].examples[0]


def test_good_data_set_has_no_findings(tool, tmp_path, capsys):
    crowd = mask_util.encode(np.asfortranarray(np.eye(20, 30, dtype=np.uint8)))
    crowd["counts"] = crowd["counts"].decode()
    name = register(
        tmp_path,
        [
            {"id": 2, "image_id": 2, "category_id": 9, "segmentation": crowd, "iscrowd": 1},
            {"id": 3, "segmentation": {"size": [20, 30], "counts": [100, 50, 450]}, "iscrowd": 1},
            {"id": 4, "segmentation": []},
        ],
    )
    report = tool.check_dataset(name)
    assert kinds(report) == {}
    assert report.facts == {
        "images": 2,
        "images without usable annotation": 1,
        "annotations": 4,
        "categories": 2,
        "categories without annotation": 1,
    }
    assert tool.main([name, "--json", str(tmp_path / "report.json")]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["facts"]["images"] == 2


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"bbox": [1, 2, float("nan"), 3]}, "box that is not finite", "[1, 2, nan, 3]"),
        ({"bbox": [1, 2, -4, 3]}, "box with a negative side", "[1, 2, -4, 3]"),
        ({"bbox": [1, 2, 0, 3]}, "box without area", "left out of training"),
        ({"bbox": [40, 2, 5, 3]}, "box outside of its image", "30x20"),
        ({"bbox": [20, 2, 15, 3]}, "box that reaches out of its image", "clipped"),
        ({"bbox": []}, "bad box", "expected [x, y, width, height]"),
        ({"bbox": [1, 2, "3", 4]}, "bad box", "expected [x, y, width, height]"),
        ({"category_id": 12}, "unknown category", "category_id 12 does not exist"),
        ({"iscrowd": 3}, "bad iscrowd", "iscrowd is 3"),
        ({"ignore": 1}, "ignored annotation", "use iscrowd"),
        ({"segmentation": [[1, 2, 3, 4]]}, "bad polygon", "at least three x, y"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "bad polygon", "at least three x, y"),
        ({"segmentation": [[1, 1, 5, 5, 9, 9]]}, "polygon without area", "polygon 0 has the area 0"),
        ({"segmentation": [[1, 1, 5, 5, float("inf"), 9]]}, "polygon that is not finite", "polygon 0"),
        ({"segmentation": [[50, 1, 55, 5, 59, 9]]}, "polygon outside of its image", "30x20"),
        ({"segmentation": "mask.png"}, "bad segmentation", "expected polygons or RLE"),
        ({"segmentation": {"size": [30, 20], "counts": [600]}}, "RLE of a wrong size", "[30, 20], its image [20, 30]"),
        ({"segmentation": {"size": [20, 30], "counts": [100, 5]}}, "bad RLE", "runs over 105 pixels"),
        ({"segmentation": {"size": [20, 30], "counts": "~~"}}, "bad RLE", "no RLE"),
        ({"segmentation": {"size": [20, 30], "counts": "1"}}, "bad RLE", "expected runs over 600 pixels"),
        ({"segmentation": {"size": [20, 30]}}, "bad RLE", "no 'counts'"),
        ({"segmentation": {"size": [20, 30], "counts": [600]}}, "empty RLE", "no pixel"),
        ({"image_id": 77}, "annotation of an unknown image", "image 77 is not in the file"),
        ({"id": 1}, "id that is not unique", "annotation id 1 occurs 2 times"),
    ],
)
def test_flaw_of_an_annotation_is_named(tool, tmp_path, changes, kind, text):
    report = tool.check_dataset(register(tmp_path, [{"id": 2, **changes}]), with_files=False)
    assert report.findings[kind].count == 1
    assert text in message(report, kind)
    if kind not in ("annotation of an unknown image", "id that is not unique"):
        assert message(report, kind).startswith("annotation 2 of image 1: ")


def test_missing_fields_are_named(tool, tmp_path):
    name = register(
        tmp_path,
        images=[
            {"id": 1, "width": 30, "height": 20},
            {"file_name": "b.png"},
            {"id": 3, "file_name": "b.png", "width": 30},
        ],
        categories=[{"id": 5}, {"name": "dog"}],
    )
    content = json.loads((tmp_path / "instances.json").read_text())
    content["annotations"] = [{"id": 1}, {"id": 2, "image_id": 1}]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    report = tool.check_dataset(name, with_files=False, examples=9)
    messages = [example for finding in report.findings.values() for example in finding.examples]
    assert set(messages) >= {
        "image 1: 'file_name' is missing",
        "image number 1: 'id' is missing",
        "image 3: 'height' is missing",
        "category 5: 'name' is missing",
        "category number 1: 'id' is missing",
        "annotation number 0: 'image_id' is missing",
        "annotation 2 of image 1: 'bbox' is missing",
        "annotation 2 of image 1: 'category_id' is missing",
    }


def test_all_problems_come_at_once_and_end_in_exit_code_2(tool, tmp_path, capsys):
    name = register(tmp_path, [{"id": 2, "bbox": [1, 2, -4, 3]}, {"id": 3, "category_id": 12}])
    assert run_command(tool.main, [name, "--examples", "1"]) == 2
    output = capsys.readouterr()
    assert "annotation 2 of image 1" in output.out
    assert "annotation 3 of image 1" in output.out
    assert output.err == "error: checked_coco has 2 errors, see above\n"


def test_examples_are_limited_and_all_are_counted(tool, tmp_path):
    name = register(tmp_path, [{"id": number, "category_id": 12} for number in range(2, 12)])
    report = tool.check_dataset(name, with_files=False, examples=2)
    finding = report.findings["unknown category"]
    assert (finding.count, len(finding.examples)) == (10, 2)
    assert "and 8 more" in report.as_text()


@pytest.mark.parametrize("content", [None, "{", "[]", '{"images": 1}'])
def test_file_that_is_no_annotation_file_is_named(tool, tmp_path, content):
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_text(content)
    register_coco_instances("checked_broken", {}, str(path), str(tmp_path))
    report = tool.check_dataset("checked_broken")
    assert str(path) in message(report, "annotation file")


def test_images_are_opened(tool, tmp_path):
    rotated = Image.Exif()
    rotated[0x0112] = 6
    images = [{"id": n, "file_name": f"{n}.png", "width": 30, "height": 20} for n in range(1, 6)]
    name = register(tmp_path, images=images)
    folder = tmp_path / "images"
    write_image(folder / "1.png")
    write_image(folder / "2.png", width=31)
    Image.new("RGB", (30, 20)).save(folder / "3.png", exif=rotated)
    (folder / "4.png").write_bytes((folder / "1.png").read_bytes()[:40])
    report = tool.check_dataset(name, workers=2)
    assert kinds(report) == {"size of an image differs": 2, "corrupt image": 1, "missing image": 1}
    assert "2.png is 31x20 (width x height), its annotations say 30x20" in message(report, "size of an image differs")
    assert "3.png is 20x30" in report.findings["size of an image differs"].examples[1]


def test_classes_are_compared_with_the_metadata(tool, tmp_path):
    name = register(tmp_path)
    MetadataCatalog.get(name).thing_classes = ["cat", "horse"]
    report = tool.check_dataset(name)
    expected = "class 1 is 'dog' in the file and 'horse' in the metadata"
    assert message(report, "other classes than in the metadata") == expected


def test_lvis_rules(tool, tmp_path):
    good = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 10], "segmentation": TRIANGLE}
    write_image(tmp_path / "train2017" / "a.png")
    image = {"width": 30, "height": 20, "neg_category_ids": [2, 7], "not_exhaustive_category_ids": []}
    content = {
        "images": [
            {"id": 1, "coco_url": "http://host/train2017/a.png", **image},
            {"id": 2, "width": 30, "height": 20, "neg_category_ids": []},
        ],
        "categories": [{"id": 1, "name": "cat", "synonyms": ["cat"]}, {"id": 2, "name": "dog", "synonyms": ["dog"]}],
        "annotations": [
            good,
            {**good, "id": 2, "category_id": 2},
            {**good, "id": 3, "segmentation": [[1, 2, 3, 4]]},
            {**good, "id": 4, "segmentation": []},
        ],
    }
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    register_lvis_instances(
        "checked_lvis", {"thing_classes": ["cat", "dog"]}, str(tmp_path / "lvis.json"), str(tmp_path)
    )
    report = tool.check_dataset("checked_lvis")
    assert kinds(report) == {
        "category annotated and listed as absent": 1,
        "unknown category": 1,
        "bad polygon": 1,
        "no usable polygon": 1,
        "no polygons": 1,
        "image without a field": 2,
    }
    assert "category 2 (dog)" in message(report, "category annotated and listed as absent")


def write_sem_seg(folder: Path) -> str:
    for name in ("good", "beyond", "resized", "void", "colour", "broken", "lonely"):
        write_image(folder / "images" / f"{name}.jpg")
    for name in ("good", "beyond", "void"):
        write_image(folder / "labels" / f"{name}.png", mode="L", value=1)
    labels = np.zeros((20, 30), dtype=np.uint8)
    labels[0, :4], labels[1, :2], labels[2, 0] = 3, 200, 255
    Image.fromarray(labels).save(folder / "labels" / "beyond.png")
    write_image(folder / "labels" / "resized.png", width=15, mode="L")
    write_image(folder / "labels" / "void.png", mode="L", value=255)
    write_image(folder / "labels" / "colour.png")
    (folder / "labels" / "broken.png").write_bytes((folder / "labels" / "good.png").read_bytes()[:40])
    write_image(folder / "labels" / "other.png", mode="L")
    records = [
        {
            "file_name": str(folder / "images" / f"{name}.jpg"),
            "sem_seg_file_name": str(folder / "labels" / f"{name}.png"),
        }
        for name in ("good", "beyond", "resized", "void", "colour", "broken")
    ]
    DatasetCatalog.register("checked_sem_seg", lambda: records)
    MetadataCatalog.get("checked_sem_seg").set(
        stuff_classes=["sky", "grass", "sand"],
        ignore_label=255,
        evaluator_type="sem_seg",
        image_root=str(folder / "images"),
        sem_seg_root=str(folder / "labels"),
    )
    return "checked_sem_seg"


def test_label_maps_are_opened(tool, tmp_path):
    report = tool.check_dataset(write_sem_seg(tmp_path), workers=2)
    assert kinds(report) == {
        "image without label map": 1,
        "label map without image": 1,
        "label beyond the classes": 1,
        "size of a label map differs": 1,
        "label map without any label": 1,
        "label map with channels": 1,
        "corrupt label map": 1,
    }
    assert "beyond.png holds 3 (4 pixels), 200 (2 pixels), expected 0 to 2 or 255" in message(
        report, "label beyond the classes"
    )
    assert "15x20 (width x height), its image 30x20" in message(report, "size of a label map differs")
    assert report.facts == {"images": 6, "classes": 3, "classes without a pixel": 1}


def test_images_of_other_data_sets_in_a_folder_are_no_problem(tool, tmp_path):
    write_sem_seg(tmp_path)
    DatasetCatalog.register("checked_sem_seg_val", list)
    MetadataCatalog.get("checked_sem_seg_val").image_root = str(tmp_path / "images")
    report = tool.check_dataset("checked_sem_seg")
    assert "image without label map" not in kinds(report) and kinds(report)["label map without image"] == 1
    assert report.facts["more images without label map in a folder of several data sets"] == 1


def test_entries_of_a_function_are_checked(tool, tmp_path):
    write_image(tmp_path / "a.png")
    box = {"bbox": [2, 2, 12, 12], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    annotations = [box, {**box, "bbox": [12, 2, 2, 12]}, {**box, "category_id": 2}, {**box, "bbox_mode": 77}]
    entry = {"file_name": str(tmp_path / "a.png"), "image_id": 1, "width": 30, "height": 20, "annotations": annotations}
    DatasetCatalog.register("checked_function", lambda: [entry, {**entry, "annotations": []}, {"image_id": 3}])
    MetadataCatalog.get("checked_function").thing_classes = ["cat", "dog"]
    report = tool.check_dataset("checked_function")
    assert kinds(report) == {
        "box with a negative side": 1,
        "unknown category": 1,
        "bad box": 1,
        "annotation without a field": 1,
        "entry without a field": 1,
        "id that is not unique": 1,
        "image file used more than once": 1,
    }
    assert message(report, "box with a negative side").startswith("annotation 1 of entry 0 (image 1): ")


def test_loader_that_fails_is_a_finding(tool):
    def load():
        raise ValueError("no such folder")

    DatasetCatalog.register("checked_failing", load)
    DatasetCatalog.register("checked_empty", list)
    assert message(tool.check_dataset("checked_failing"), "loading") == "ValueError: no such folder"
    assert message(tool.check_dataset("checked_empty"), "loading") == "the data set is empty"


def test_unknown_name_names_the_known_ones(tool, capsys):
    assert run_command(tool.main, ["no_such_set"]) == 2
    assert "coco_2017_val" in capsys.readouterr().err
    assert run_command(tool.main, ["lvis_v1_vall"]) == 2
    assert "nearest names: lvis_v1_val" in capsys.readouterr().err


def test_modules_that_register_data_sets_can_be_imported(tool, tmp_path, monkeypatch, capsys):
    write_coco(tmp_path, [])
    arguments = f"'checked_mine', {{}}, {str(tmp_path / 'instances.json')!r}, {str(tmp_path / 'images')!r}"
    (tmp_path / "my_registrations.py").write_text(
        f"from detectron2.data.datasets import register_coco_instances\nregister_coco_instances({arguments})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert tool.main(["checked_mine", "--import", "my_registrations"]) == 0
    assert run_command(tool.main, ["checked_mine", "--import", "no_such_module"]) == 2
    assert "no_such_module" in capsys.readouterr().err


def test_options_out_of_range_are_bad_usage(tool, capsys):
    assert run_command(tool.main, ["coco_2017_val", "--workers", "0"]) == 2
    assert "--workers must be positive" in capsys.readouterr().err


def write_labelled(folder: Path, images: list[dict], annotations: list[dict] = ()) -> str:
    """A json whose images list classes; categories have the ids 5 and 9. Returns its path."""
    write_image(folder / "a.png")
    content = {
        "images": [{"width": 30, "height": 20, **image} for image in images],
        "annotations": [
            {"id": number, "image_id": 1, "bbox": [2, 2, 10, 10], **row} for number, row in enumerate(annotations, 1)
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 5, "name": "cat"}],
    }
    path = folder / "labelled.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_image_labels(tool, tmp_path):
    from detection.data.datasets import custom_register_lvis_instances

    images = [
        {"id": 1, "file_name": "a.png", "pos_category_ids": [5], "neg_category_ids": [9]},
        {"id": 2, "tar_index": 7, "pos_category_ids": [5, 12]},
        {"id": 3, "pos_category_ids": []},
    ]
    path = write_labelled(tmp_path, images, [{"category_id": 9}])
    custom_register_lvis_instances("checked_labels", {}, path, str(tmp_path), "imagenet")
    report = tool.check_dataset("checked_labels")
    assert kinds(report) == {
        "unknown category": 1,
        "category annotated and listed as absent": 1,
        "image without a field": 1,
    }
    assert message(report, "unknown category") == "image 2: pos_category_ids holds 12, which does not exist"
    assert "image 3: 'file_name' is missing" in message(report, "image without a field")
    assert report.facts["images with labels"] == 2
    assert report.facts["images in archives"] == 1


def test_open_images(tool, tmp_path):
    from detection.data.datasets import register_oid_instances

    images = [{"id": 1, "file_name": "a.png", "pos_category_ids": [5], "neg_category_ids": []}]
    path = write_labelled(tmp_path, images, [{"category_id": 5}, {"category_id": 9}])
    register_oid_instances("checked_oid", {}, path, str(tmp_path))
    report = tool.check_dataset("checked_oid")
    assert kinds(report) == {"category annotated and not listed as present": 1}
    assert "category 9 (dog) is annotated and not in pos_category_ids" in report.as_text()


def test_names_of_detection_are_known(tool, tmp_path, capsys):
    assert run_command(tool.main, ["objects365_v2_val", "--no-files"]) == 2
    out = capsys.readouterr().out
    assert "zhiyuan_objv2_val_fixname.json: No such file or directory; data sets lie below" in out
    assert "nothing could be read" in out and "\n1 error, 0 warnings" in out


def test_names_of_segmentation_are_known(tool, tmp_path, capsys):
    assert run_command(tool.main, ["coco_2017_test_stuff_sem_seg_classification", "--no-files"]) == 2
    assert "val2017, which should hold every image, does not exist" in capsys.readouterr().out


def test_entries_of_single_masks_are_checked(tool, tmp_path):
    write_image(tmp_path / "a.jpg")
    Image.new("L", (30, 20), 1).save(tmp_path / "a.png")
    entry = {"file_name": str(tmp_path / "a.jpg"), "sem_seg_file_name": str(tmp_path / "a.png")}
    DatasetCatalog.register("checked_masks", lambda: [{**entry, "category_id": 1}, {**entry, "category_id": 2}])
    MetadataCatalog.get("checked_masks").set(stuff_classes=["sky", "grass", "sand"], ignore_label=255)
    report = tool.check_dataset("checked_masks")
    assert kinds(report) == {"label map without its class": 1}
    assert "a.png shows nothing of class 2; count again" in report.as_text()
