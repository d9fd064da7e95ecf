"""Properties and error messages of the segmentation evaluators."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import segmentation  # noqa: F401
from detectron2.data import DatasetCatalog, MetadataCatalog
from prompt_pretrain.errors import InputError
from segmentation.evaluation import (
    ClassificationEvaluator,
    GeneralizedPseudoSemSegEvaluator,
    GeneralizedSemSegEvaluator,
    dense_crf,
)
from segmentation.evaluation.confusion import (
    ConfusionMatrix,
    harmonic_mean,
    mean_iou_of_present_classes,
    segmentation_metrics,
)
from segmentation.pseudo_label_maps import write_pseudo_label_maps


@pytest.fixture
def data_set(tmp_path):
    """Name and records of a data set of three classes and one 2 x 3 image."""
    labels = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "a.jpg")
    records = [{"file_name": str(tmp_path / "a.jpg"), "sem_seg_file_name": str(tmp_path / "a.png")}]
    DatasetCatalog.register("evaluated", lambda: records)
    MetadataCatalog.get("evaluated").set(
        stuff_classes=["x", "y", "z"], ignore_label=255, evaluation_set={"base": [0]}, trainable_flag=[1, 0, 0]
    )
    yield "evaluated", records
    DatasetCatalog.remove("evaluated")
    MetadataCatalog.remove("evaluated")


def one_hot(labels, classes=3):
    return torch.nn.functional.one_hot(torch.tensor(labels), classes).permute(2, 0, 1).float()


def test_metrics_by_hand():
    matrix = ConfusionMatrix(3)
    matrix.add(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 0, 3]))  # the last pixel is ignored
    results = segmentation_metrics(matrix.counts(), ["x", "y", "z"], {"base": [0]})
    assert results["IoU-x"] == pytest.approx(100 / 3)  # one hit, predicted twice, there twice
    assert results["IoU-y"] == pytest.approx(50)
    assert math.isnan(results["IoU-z"])
    assert results["mIoU"] == pytest.approx((100 / 3 + 50) / 3)  # z is predicted but absent: counted as 0
    assert mean_iou_of_present_classes(matrix.counts()) == pytest.approx((100 / 3 + 50) / 2)
    assert results["pACC"] == results["mACC"] == 50
    assert results["mIoU-unbase"] == 25
    assert results["hIoU-base"] == pytest.approx(harmonic_mean(100 / 3, 25))
    assert harmonic_mean(0.0, 50.0) == 0


def test_metrics_of_nothing_are_nan():
    results = segmentation_metrics(ConfusionMatrix(2).counts(), ["x", "y"], {"base": [0]})
    assert all(math.isnan(value) for value in results.values())


def test_a_perfect_prediction_and_its_files(data_set, tmp_path):
    name, records = data_set
    evaluator = GeneralizedSemSegEvaluator(name, False, str(tmp_path / "out"))
    evaluator.process(records, [{"sem_seg": one_hot([[0, 1, 2], [1, 1, 0]])}])
    results = evaluator.evaluate()["sem_seg"]
    assert results["mIoU"] == results["pACC"] == 100  # what is predicted on ignored pixels does not count
    saved = torch.load(tmp_path / "out" / "sem_seg_evaluation.pth", weights_only=True)
    assert saved["mIoU"] == 100
    predictions = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    assert [item["category_id"] for item in predictions] == [0, 1, 2]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "sem_seg_evaluation.pth",
        "sem_seg_predictions.json",
    ]


def test_parts_of_a_killed_evaluation_are_removed_and_never_read(data_set, tmp_path):
    name, records = data_set
    killed = [tmp_path / f".sem_seg_predictions.json.rank{rank}.a1" for rank in (0, 3)]  # of a run with more processes
    for path in killed:
        path.write_text('{"file_name": "stale.jpg"}\n')
    evaluator = GeneralizedSemSegEvaluator(name, False, str(tmp_path))
    assert not any(path.exists() for path in killed)
    killed[0].write_text("stale")  # as on a folder that not all machines share
    evaluator.process(records, [{"sem_seg": one_hot([[0, 1, 2], [1, 1, 0]])}])
    evaluator.evaluate()
    assert "stale" not in (tmp_path / "sem_seg_predictions.json").read_text()

    evaluator.reset()
    next(path for path in tmp_path.iterdir() if ".rank0." in path.name).unlink()
    with pytest.raises(InputError, match="rank0.*cannot be seen by the first; set OUTPUT_DIR to a folder that all"):
        evaluator.evaluate()


def test_predictions_become_label_maps(data_set, tmp_path):
    name, records = data_set
    evaluator = GeneralizedPseudoSemSegEvaluator(name, False, str(tmp_path / "out"), reject_threshold=0.4)
    scores = one_hot([[0, 0, 2], [1, 1, 0]]) * 5
    scores[:, 1, 1] = 0  # one third for each class: rejected
    evaluator.process(records, [{"sem_seg": scores}])
    evaluator.evaluate()
    assert write_pseudo_label_maps(tmp_path / "out" / "sem_seg_predictions.json", tmp_path / "maps") == 1
    labels = np.asarray(Image.open(tmp_path / "maps" / "a.png"))
    # Known pixels of the seen class x keep it; x itself is never predicted, so it is rejected at (0, 1).
    assert labels.tolist() == [[0, 255, 2], [1, 255, 0]]


def test_post_processing_gets_scores_and_picture(data_set):
    name, records = data_set

    def flip(scores, image):
        assert image.shape == (2, 3, 3)
        return scores.flip(0)

    evaluator = GeneralizedSemSegEvaluator(name, False, post_process_func=flip)
    evaluator.process(records, [{"sem_seg": one_hot([[2, 1, 0], [1, 1, 2]])}])
    assert evaluator.evaluate()["sem_seg"]["pACC"] == 100


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(2, 2, 3), "scores 2 classes, data set evaluated has 3"),
        (
            torch.zeros(3, 3, 3),
            r"a.png has the size \(height, width\) \(2, 3\), but .*a.jpg was predicted with \(3, 3\)",
        ),
    ],
)
def test_scores_that_do_not_fit(data_set, scores, message):
    name, records = data_set
    with pytest.raises(InputError, match=message):
        GeneralizedSemSegEvaluator(name, False).process(records, [{"sem_seg": scores}])


def test_bad_label_maps(data_set, tmp_path):
    name, records = data_set
    evaluator = GeneralizedSemSegEvaluator(name, False)
    outputs = [{"sem_seg": torch.zeros(3, 2, 3)}]
    Image.fromarray(np.array([[3, 200, 0], [0, 0, 3]], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(
        InputError, match=r"a.png has 3 pixels with labels \[3, 200\], expected 0 to 2 or the ignored 255"
    ):
        evaluator.process(records, outputs)
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.png has shape .* expected one channel"):
        evaluator.process(records, outputs)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(InputError, match="label map .*a.png cannot be read"):
        evaluator.process(records, outputs)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="label map .*a.png does not exist"):
        evaluator.process(records, outputs)
    with pytest.raises(InputError, match="data set evaluated has no label map for b.jpg"):
        evaluator.process([{"file_name": "b.jpg"}], outputs)


def test_pseudo_labels_need_flags(data_set):
    name, _ = data_set
    MetadataCatalog.get(name).trainable_flag.append(1)
    with pytest.raises(InputError, match="trainable_flag of evaluated, .* each of its 3 classes; found 4"):
        GeneralizedPseudoSemSegEvaluator(name, False)


def test_classification(data_set):
    name, _ = data_set
    evaluator = ClassificationEvaluator(name, False)
    for label, logits in ((0, [3.0, 1, 0]), (0, [0, 1, 0.5]), (1, [0, 2, 1])):
        evaluator.process([{"category_id": label}], [{"classification": torch.tensor([logits])}])
    results = evaluator.evaluate()
    assert results["macc_top1"] == pytest.approx(200 / 3)
    assert results["macc_top5"] == 100  # three classes only
    assert (results["acc_top1_x"], results["acc_top1_y"], results["acc_top1_z"]) == (50, 100, 0)
    assert results["mmacc_top1"] == 50
    assert (results["acc_top1_base"], results["acc_top1_w/o_base"]) == (50, 100)
    with pytest.raises(InputError, match="scores 2 classes, data set evaluated has 3"):
        evaluator.process([{"category_id": 0}], [{"classification": torch.zeros(1, 2)}])


def test_dense_crf_says_what_is_missing():
    with pytest.raises(InputError, match="needs the package pydensecrf"):
        dense_crf(torch.zeros(2, 3, 4), image=np.zeros((3, 4, 3), np.uint8))


def rle(rows, category=0, image="a.jpg"):
    import pycocotools.mask as mask_util

    found = mask_util.encode(np.asfortranarray(rows, dtype=np.uint8))
    return {"file_name": image, "category_id": category, "segmentation": found | {"counts": found["counts"].decode()}}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({}, "is not a list of category_id, file_name, segmentation"),
        ([rle([[1]], 7)], "a.jpg has category 7, which is none of the data set's classes"),
        ([rle([[1]]), rle([[1, 0]])], r"has masks of sizes \[1, 1\] and \[1, 2\]"),
        ([rle([[1]]), rle([[1]], image="x/a.png")], "x/a.png and a.jpg would both become a.png"),
    ],
)
def test_bad_prediction_files(tmp_path, items, message):
    (tmp_path / "p.json").write_text(json.dumps(items))
    with pytest.raises(InputError, match=message):
        write_pseudo_label_maps(tmp_path / "p.json", tmp_path, {0: 0})
    (tmp_path / "p.json").write_text("[")
    with pytest.raises(InputError, match="is not valid JSON"):
        write_pseudo_label_maps(tmp_path / "p.json", tmp_path)
    with pytest.raises(InputError, match="evaluate with PSEUDO True first"):
        write_pseudo_label_maps(tmp_path / "q.json", tmp_path)
