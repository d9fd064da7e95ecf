"""The detector as a graph: the detections of the model, from an image and class embeddings."""

from pathlib import Path

import pytest
import torch

import detection
from detection.api import Detector
from detection.export import detector_part
from detectron2.structures import Instances
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.errors import InputError
from prompt_pretrain.model_export import Exportable, difference, export_onnx, export_program, onnx_outputs
from tests.export_packages import needs_onnx

CONFIG = "shapeworld_boxsup"
FEW = ("MODEL.CENTERNET.POST_NMS_TOPK_TEST", 8, "TEST.DETECTIONS_PER_IMAGE", 5, "MODEL.MASK_ON", True)
SIZE = (100, 148)  # no multiple of 32: the graph pads


def load(*overrides: object) -> Detector:
    torch.manual_seed(0)
    return detection.load(CONFIG, "", "cpu", overrides=[*FEW, *overrides])


@pytest.fixture(scope="module")
def part() -> Exportable:
    return detector_part(load(), SIZE)


@pytest.fixture(scope="module")
def program(part) -> torch.export.ExportedProgram:
    return export_program(part)


def of_model(detector: Detector, inputs: dict[str, torch.Tensor]) -> Instances:
    detector.set_classes(ClassEmbeddings(inputs["class_embeddings"]))
    with torch.no_grad():
        return detector.model.inference([{"image": inputs["image"]}], do_postprocess=False)[0]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("MODEL.ROI_HEADS.ONE_CLASS_PER_PROPOSAL", True, "MODEL.MASK_ON", False),
        ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", False, "MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE", False),
        ("MODEL.CENTERNET.INFERENCE_TH", 0.0115, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.2),  # some of the places
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.99),  # nothing is found
    ],
)
def test_graph_finds_what_the_model_finds(overrides):
    detector = load(*overrides)
    part = detector_part(detector, SIZE)
    for inputs in (part.inputs, *part.others):
        expected = of_model(detector, inputs)
        found = dict(zip(part.outputs, part.run(inputs), strict=True))
        assert len(expected) == 0 if 0.99 in overrides else 0 < len(expected) <= 5
        torch.testing.assert_close(found["boxes"], expected.pred_boxes.tensor)
        torch.testing.assert_close(found["scores"], expected.scores)
        assert torch.equal(found["classes"], expected.pred_classes)
        if "masks" in found:
            torch.testing.assert_close(found["masks"], expected.pred_masks[:, 0])


def test_classes_stay_open_in_the_program(part, program):
    graph = program.module()
    for inputs in (part.inputs, *part.others):
        assert difference(graph(**inputs), part.run(inputs)) < 1e-5
    assert part.describe()["inputs"][1] == {"name": "class_embeddings", "type": "float32", "shape": ["classes", 64]}
    for each, found in zip(part.describe()["outputs"], part.run(part.inputs), strict=True):
        assert each["shape"] == ["detections", *found.shape[1:]]


@needs_onnx
@pytest.mark.slow
def test_onnxruntime_finds_the_same(part, program, tmp_path: Path):
    export_onnx(part, program, tmp_path / "a.onnx")
    for inputs in (part.inputs, *part.others):
        assert difference(onnx_outputs(tmp_path / "a.onnx", inputs), part.run(inputs)) < 1e-4


def test_the_detector_keeps_its_classes():
    detector = load().set_classes(["a", "b"])
    before = detector.model.roi_heads.box_predictor[0].cls_score.zs_weight
    detector_part(detector, SIZE)
    assert detector.model.roi_heads.box_predictor[0].cls_score.zs_weight is before and before.shape[1] == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False), "its masks depend on the class"),
        (("MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS", False), "its classifier is learned, so class embeddings cannot be"),
        (("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "WITH_IMAGE_LABELS", False), "CascadeROIHeads is not supported"),
        (("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"), "META_ARCHITECTURE GeneralizedRCNN has no graph"),
        (("MODEL.CENTERNET.ONLY_PROPOSAL", False, "MODEL.CENTERNET.AS_PROPOSAL", True), "another than CenterNet with"),
    ],
)
def test_other_models_are_errors(overrides, message):
    with pytest.raises(InputError, match=f"this detector cannot be exported: .*{message}.*; CustomRCNN with"):
        detector_part(load(*overrides), SIZE)
