"""The two-stage meta-architecture with stand-ins for its parts: what it hands over, and what it returns."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from detectron2.modeling import Backbone, GeneralizedRCNN, ProposalNetwork
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage


class Halving(Backbone):
    """One map of stride 2."""

    def __init__(self, square_size: int = 32) -> None:
        super().__init__()
        self.square_size = square_size
        self._out_features, self._out_feature_channels, self._out_feature_strides = ["f"], {"f": 3}, {"f": 2}
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"f": self.scale * x[:, :, ::2, ::2]}

    @property
    def size_divisibility(self) -> int:
        return 8

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self.square_size}


class Proposer(nn.Module):
    """Proposes the whole image and a box that is outside of it."""

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        self.got = (images, features, gt_instances)
        proposals = [
            Instances((h, w), proposal_boxes=Boxes(torch.tensor([[0.0, 0.0, w, h], [40.0, 40.0, 50.0, 50.0]])))
            for h, w in images.image_sizes
        ]
        return proposals, {"loss_propose": features["f"].mean()} if self.training else {}


class Heads(nn.Module):
    """Detects every proposal."""

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        self.got = (images, features, proposals, targets)
        if self.training:
            return proposals, {"loss_detect": 2 * features["f"].mean()}
        return [Instances(p.image_size, pred_boxes=p.proposal_boxes) for p in proposals], {}

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        for entry in instances:
            entry.scores = torch.ones(len(entry))
        return instances


def detector(**options: Any) -> GeneralizedRCNN:
    settings: dict[str, Any] = {
        "backbone": Halving(),
        "proposal_generator": Proposer(),
        "roi_heads": Heads(),
        "pixel_mean": [10.0, 20.0, 30.0],
        "pixel_std": [2.0, 4.0, 8.0],
    }
    return GeneralizedRCNN(**settings | options)


def inputs() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    return [
        {"image": torch.randint(0, 256, (3, h, w), dtype=torch.uint8), "height": 2 * h, "width": 3 * w}
        for h, w in ((10, 20), (24, 6))
    ]


def truth(size: tuple[int, int]) -> Instances:
    return Instances(size, gt_boxes=Boxes(torch.tensor([[1.0, 2.0, 5.0, 6.0]])), gt_classes=torch.tensor([3]))


def test_images_are_normalised_and_padded_as_the_backbone_wants() -> None:
    batch, model = inputs(), detector()
    images = model.preprocess_image(batch)
    assert images.tensor.shape == (2, 3, 32, 32)
    assert images.image_sizes == [(10, 20), (24, 6)]
    expected = (batch[1]["image"].float() - torch.tensor([10.0, 20.0, 30.0])[:, None, None]) / torch.tensor(
        [2.0, 4.0, 8.0]
    ).reshape(3, 1, 1)
    assert_close(images[1], expected)
    assert images.tensor[1, :, 24:].abs().sum() == 0


def test_training_returns_the_losses_of_both_stages() -> None:
    model, batch = detector(), inputs()
    for entry in batch:
        entry["instances"] = truth(tuple(entry["image"].shape[1:]))
    with EventStorage():
        losses = model(batch)
    assert list(losses) == ["loss_detect", "loss_propose"]
    assert_close(losses["loss_detect"], 2 * losses["loss_propose"])
    assert [int(t.gt_classes) for t in model.proposal_generator.got[2]] == [3, 3]
    assert [len(p) for p in model.roi_heads.got[2]] == [2, 2]
    assert model.roi_heads.got[3] == model.proposal_generator.got[2]
    sum(losses.values()).backward()
    assert model.backbone.scale.grad is not None


def test_inference_returns_detections_in_the_size_of_the_result() -> None:
    model = detector().eval()
    with torch.no_grad():
        results = model(inputs())
    assert [list(result) for result in results] == [["instances"], ["instances"]]
    assert [result["instances"].image_size for result in results] == [(20, 60), (48, 18)]
    assert_close(results[0]["instances"].pred_boxes.tensor, torch.tensor([[0.0, 0.0, 60.0, 20.0]]))


def test_the_result_has_the_size_of_the_image_by_default() -> None:
    (result,) = detector().eval()([{"image": torch.zeros(3, 9, 7)}])
    assert result["instances"].image_size == (9, 7)


def test_without_postprocessing_detections_stay_in_the_network_s_coordinates() -> None:
    results = detector().eval().inference(inputs(), do_postprocess=False)
    assert [result.image_size for result in results] == [(10, 20), (24, 6)]
    assert [len(result) for result in results] == [2, 2]


def test_given_boxes_get_the_other_predictions_only() -> None:
    model = detector().eval()
    given = [Instances((10, 20), pred_boxes=Boxes(torch.tensor([[0.0, 0.0, 4.0, 5.0]])), pred_classes=torch.ones(1))]
    (result,) = model.inference(inputs()[:1], detected_instances=given)
    assert_close(result["instances"].pred_boxes.tensor, torch.tensor([[0.0, 0.0, 12.0, 10.0]]))
    assert result["instances"].scores.tolist() == [1.0]
    assert not hasattr(model.proposal_generator, "got")


def test_inference_is_for_evaluation_mode() -> None:
    with pytest.raises(AssertionError):
        detector().inference(inputs())


def test_a_model_without_generator_takes_the_proposals_of_its_inputs() -> None:
    model = detector(proposal_generator=None).eval()
    batch = inputs()
    with pytest.raises(AssertionError):
        model(batch)
    for entry in batch:
        entry["proposals"] = Instances(
            tuple(entry["image"].shape[1:]), proposal_boxes=Boxes(torch.tensor([[1.0, 1.0, 3.0, 3.0]]))
        )
    results = model(batch)
    assert_close(results[0]["instances"].pred_boxes.tensor, torch.tensor([[3.0, 2.0, 9.0, 6.0]]))
    for entry in batch:
        entry["instances"] = truth((8, 8))
    assert list(model.train()(batch)) == ["loss_detect"]


def test_pixel_statistics_are_not_in_checkpoints() -> None:
    model = detector()
    assert list(model.state_dict()) == ["backbone.scale"]
    assert model.device == torch.device("cpu")


def test_pictures_of_the_training_need_the_channel_order() -> None:
    with pytest.raises((AssertionError, ValueError), match="input_format"):
        detector(vis_period=1)


def test_pictures_of_the_training_show_truth_and_proposals_side_by_side() -> None:
    model, batch = detector(vis_period=2, input_format="BGR", backbone=Halving(square_size=0)), inputs()
    batch[0]["image"] = torch.full((3, 30, 40), 200, dtype=torch.uint8)
    for entry in batch:
        entry["instances"] = truth(tuple(entry["image"].shape[1:]))
    with EventStorage() as storage:
        model(batch)
        storage.step()
        model(batch)
        assert len(storage._vis_data) == 1  # every second iteration
        name, picture, iteration = storage._vis_data[0]
    assert (name, iteration) == ("Left: GT bounding boxes;  Right: Predicted proposals", 0)
    assert picture.shape == (3, 30, 80)
    assert (picture != 200).any(axis=0)[:, :40].any()


def test_proposal_network() -> None:
    model = ProposalNetwork(
        backbone=Halving(), proposal_generator=Proposer(), pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3
    )
    batch = inputs()
    results = model.eval()(batch)
    assert [result["proposals"].image_size for result in results] == [(20, 60), (48, 18)]
    assert len(results[0]["proposals"]) == 1
    for entry in batch:
        entry["instances"] = truth(tuple(entry["image"].shape[1:]))
    assert list(model.train()(batch)) == ["loss_propose"]
    assert model.proposal_generator.got[2][0].gt_boxes.tensor.tolist() == [[1.0, 2.0, 5.0, 6.0]]
