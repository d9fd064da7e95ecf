"""The Python API, on a small model with random weights."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import detection
from detection.api import CONFIG_FOLDER, Detector, load
from detection.reset_classifier import box_predictors
from detection.results import DetectionResult
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.class_groups import ClassGroups
from prompt_pretrain.errors import InputError

CONFIG = "shapeworld_boxsup"
NAMES = ("striped red star", "plain blue ring", "dotted green heart")
FEW = ("MODEL.CENTERNET.POST_NMS_TOPK_TEST", 8, "TEST.DETECTIONS_PER_IMAGE", 5)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    torch.manual_seed(0)
    cache = str(tmp_path_factory.mktemp("cache"))
    return load(CONFIG, "", "cpu", overrides=[*FEW, "MODEL.CLASS_EMBEDDINGS.CACHE_DIR", cache])


@pytest.fixture(autouse=True)
def _same_classes(detector: Detector) -> None:
    detector.set_classes(NAMES)


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def same(one: DetectionResult, other: DetectionResult) -> None:
    assert one.class_names == other.class_names
    torch.testing.assert_close(one.boxes, other.boxes)
    torch.testing.assert_close(one.scores, other.scores)


def test_one_image_gives_one_result_with_names(detector: Detector) -> None:
    found = detector.predict(picture())
    assert isinstance(found, DetectionResult) and 0 < len(found) <= 5
    assert set(found.class_names) <= set(NAMES)
    assert (found.height, found.width) == (40, 60)
    assert (found.boxes >= 0).all() and (found.boxes[:, [0, 2]] <= 60).all()
    assert found.to_coco()[0]["category_name"] in NAMES
    assert detection.load is load and "3 classes" in repr(detector)


def test_arrays_files_and_pictures_give_the_same(detector: Detector, tmp_path: Path) -> None:
    pixels = picture()
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    expected = detector.predict(pixels)
    same(detector.predict(tmp_path / "a.png"), expected)
    same(detector.predict(Image.fromarray(pixels[..., ::-1].copy())), expected)
    (in_folder,) = detector.predict(str(tmp_path))
    same(in_folder, expected)


def test_batches_change_no_result_and_keep_the_order(detector: Detector) -> None:
    pictures = [picture(40, 60, 0), picture(60, 40, 1), picture(40, 60, 2), picture(50, 50, 3), picture(40, 60, 4)]
    alone = [detector.predict(each) for each in pictures]
    together = list(detector.stream(pictures, batch_size=2))
    assert [each.index for each in together] == [0, 1, 2, 3, 4]
    for one, other in zip(alone, together, strict=True):
        same(one, other)


def test_a_video_gives_a_result_per_frame(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for seed in range(3):
        writer.write(picture(48, 64, seed))
    writer.release()
    assert [found.source for found in detector.predict(path)] == [f"{path}#{number}" for number in range(3)]


def test_scores_can_be_cut(detector: Detector) -> None:
    everything = detector.predict(picture())
    threshold = float(everything.scores[1])
    assert len(detector.predict(picture(), min_score=threshold)) == int((everything.scores >= threshold).sum())


def test_classes_by_names_vocabulary_embeddings_and_file(detector: Detector, tmp_path: Path) -> None:
    expected = detector.predict(picture())
    made = ClassEmbeddings(torch.eye(64)[:2])
    assert detector.set_classes(made).class_names == ("class 0", "class 1")
    assert detector.set_classes(made, names=["a", "b"]).class_names == ("a", "b")
    made.save(tmp_path / "e.npy")
    assert detector.set_classes(tmp_path / "e.npy", names="a,b").class_names == ("a", "b")
    same(detector.set_classes(",".join(NAMES)).predict(picture()), expected)
    assert len(detector.set_classes("plain blue ring,").predict(picture())) > 0  # one class is enough
    assert len(detector.set_classes("coco").class_names) == 80


def test_another_order_of_classes_changes_only_their_numbers(detector: Detector) -> None:
    expected = detector.predict(picture())
    same(detector.set_classes(NAMES[::-1]).predict(picture()), expected)


def test_tiny_and_odd_pictures(detector: Detector) -> None:
    for height, width in ((1, 1), (1, 150), (3, 2)):
        found = detector.predict(picture(height, width))
        assert (found.height, found.width) == (height, width)
    with pytest.raises(InputError, match="900 x 1 pixels are too elongated for images of 160 pixels"):
        detector.predict(picture(1, 900))
    assert len(detector.predict([picture(1, 900), picture()], skip_bad=True)) == 1
    assert detector.predict([]) == []


def test_bad_pictures_are_errors_or_left_out(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "b.png"), picture())
    with pytest.raises(InputError, match="a.jpg: damaged or not an image"):
        detector.predict(tmp_path)
    assert [Path(found.source).name for found in detector.predict(tmp_path, skip_bad=True)] == ["b.png"]
    with pytest.raises(InputError, match="damaged"):
        detector.predict(tmp_path / "a.jpg", skip_bad=True)
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        detector.predict(picture(), batch_size=0)


def test_bad_classes(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        detector.set_classes([])
    with pytest.raises(InputError, match="class 1 has the name ''"):
        detector.set_classes(["a", ""])
    with pytest.raises(InputError, match="width 7 but the model's features have 64"):
        detector.set_classes(ClassEmbeddings(torch.ones(2, 7)))
    with pytest.raises(InputError, match="no class embeddings"):
        detector.set_classes(tmp_path / "none.npy")


def test_weights_bring_their_classes_if_there_are_as_many(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    overrides = [*FEW, "MODEL.CLASS_EMBEDDINGS.CACHE_DIR", str(tmp_path), "MODEL.ROI_HEADS.NUM_CLASSES", 5]
    fresh = load(CONFIG, "", "cpu", overrides=overrides)
    torch.save({"model": fresh.model.state_dict()}, path)
    again = load(CONFIG, path, "cpu", overrides=overrides)
    assert len(again.class_names) == 5
    other = load(CONFIG, path, "cpu", overrides=[*overrides, "MODEL.ROI_HEADS.NUM_CLASSES", 7])
    with pytest.raises(InputError, match="call set_classes first"):
        other.predict(picture())
    expected = again.set_classes(NAMES).predict(picture())
    same(other.set_classes(NAMES).predict(picture()), expected)


def test_weights_that_know_their_classes_need_nothing_else(
    detector: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.pth"
    cache = ["MODEL.CLASS_EMBEDDINGS.CACHE_DIR", str(tmp_path)]
    fresh = load(CONFIG, "", "cpu", overrides=[*FEW, *cache, "MODEL.ROI_HEADS.NUM_CLASSES", 3])
    torch.save({"model": fresh.model.state_dict(), "class_names": list(NAMES)}, path)
    again = load(CONFIG, path, "cpu", overrides=[*FEW, *cache])  # the config says 96 classes
    assert again.class_names == NAMES
    expected = box_predictors(fresh.model)[0].cls_score.zs_weight  # random ones differ between the stages
    assert all(torch.allclose(each.cls_score.zs_weight, expected) for each in box_predictors(again.model))
    # A published file of the config, and a json that is no longer there.
    cfg = again.cfg.clone()
    ClassEmbeddings(torch.eye(64)[:4], ("a", "b", "c", "d")).save(tmp_path / "e.safetensors")
    cfg.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH = str(tmp_path / "e.safetensors")
    assert load(cfg, path, "cpu").class_names == NAMES
    assert load(cfg, path, "cpu", overrides=["MODEL.CLASS_EMBEDDINGS.VOCABULARY", "a,b"]).class_names == ("a", "b")
    cfg.MODEL.CLASS_EMBEDDINGS.VOCABULARY = str(tmp_path / "gone.json")
    assert load(cfg, path, "cpu").class_names == NAMES
    assert "gone.json" in caplog.text
    with pytest.raises(InputError, match=r"gone\.json"):
        load(cfg, path, "cpu", overrides=["MODEL.CLASS_EMBEDDINGS.VOCABULARY", str(tmp_path / "gone.json")])
    torch.save({"model": fresh.model.state_dict()}, path)
    with pytest.raises(InputError, match=r"gone\.json"):
        load(cfg, path, "cpu")


def test_the_config_that_a_run_has_written_names_its_classes(detector: Detector, tmp_path: Path) -> None:
    ClassEmbeddings(torch.eye(64)[:3], NAMES).save(tmp_path / "e.safetensors")
    ClassEmbeddings(torch.eye(64)[:3]).save(tmp_path / "e.npy")
    for file, names in (("e.safetensors", NAMES), ("e.npy", ("class 0", "class 1", "class 2"))):
        path = str(tmp_path / file)
        overrides = [*FEW, "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH", path, "MODEL.ROI_HEADS.NUM_CLASSES", 3]
        assert load(CONFIG, "", "cpu", overrides=overrides).class_names == names


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_text("junk\n")
    for given, message in (
        (("nothing",), "no config 'nothing'"),
        ((tmp_path / "none.yaml",), "no config file"),
        ((CONFIG,), "no weights: give a checkpoint"),
        ((CONFIG, tmp_path / "none.pth"), "no weights .*none.pth"),
        ((CONFIG, tmp_path / "bad.pth"), "bad.pth cannot be used: .* is cut off or damaged"),
    ):
        with pytest.raises(InputError, match=message):
            load(*given, device="cpu")
    assert CONFIG_FOLDER.is_dir()


def test_a_detector_without_classes_or_with_learned_ones(detector: Detector) -> None:
    bare = Detector(detector.cfg, detector.model)
    with pytest.raises(InputError, match="call set_classes first"):
        bare.predict(picture())
    cfg = detector.cfg.clone()
    cfg.MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS = False
    with pytest.raises(InputError, match="learned classifier, its classes are fixed"):
        Detector(cfg, detector.model).set_classes(["a"])


def test_groups_report_classes_and_not_names(detector: Detector) -> None:
    names = ("striped red star", "plain blue ring", "dotted green heart", "sand")
    rows = detector.set_classes(names).predict(picture())
    groups = ClassGroups.of(names[:3], background=names[3:]).with_parents({"shape": names[:2]})
    found = detector.set_classes(groups).predict(picture())
    assert detector.class_names == ("shape", "dotted green heart")
    assert set(found.class_names) <= set(detector.class_names)
    assert len(found) <= len(rows) and set(found.scores.tolist()) <= set(rows.scores.tolist())
    detector.set_classes(names)
    same(detector.predict(picture()), rows)  # groups are forgotten
