"""Two-stage detectors, and their first stage alone."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import build_backbone
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.images import Inputs, normalized_images, output_size, register_pixel_statistics
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.proposal_generator.build import build_proposal_generator
from detectron2.modeling.roi_heads.sampled_heads import build_roi_heads
from detectron2.structures.image_list import ImageList
from detectron2.structures.instances import Instances
from detectron2.utils.events import get_event_storage

__all__ = ["GeneralizedRCNN", "ProposalNetwork"]


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(nn.Module):
    """Backbone, proposals and per-region heads.

    Args:
        proposal_generator: None to take the proposals from the inputs.
        pixel_mean, pixel_std: one number for each image channel, to normalise by.
        input_format: order of the channels, such as ``BGR``; needed for pictures of the training.
        vis_period: iterations between such pictures; 0 for none.
    """

    pixel_mean: Tensor  # (C, 1, 1)
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module | None,
        roi_heads: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        input_format: str | None = None,
        vis_period: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.input_format = input_format
        self.vis_period = vis_period
        if vis_period > 0 and input_format is None:
            raise ValueError("GeneralizedRCNN with vis_period > 0 (VIS_PERIOD) needs input_format (INPUT.FORMAT)")
        register_pixel_statistics(self, pixel_mean, pixel_std)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(cfg, shapes),
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: Inputs) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses by name in training, `inference` otherwise.

        Args:
            batched_inputs: one dict per image. ``image`` (C, H, W) in the training's channel order and range;
                ``instances`` with the ground truth, in training; ``height`` and ``width`` of the result;
                ``proposals`` where there is no proposal generator.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        gt_instances = None
        if "instances" in batched_inputs[0]:
            gt_instances = [entry["instances"].to(self.device) for entry in batched_inputs]
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self._propose(images, features, batched_inputs, gt_instances)
        _, detector_losses = self.roi_heads(images, features, proposals, gt_instances)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return detector_losses | proposal_losses

    def inference(
        self,
        batched_inputs: Inputs,
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Instances]] | list[Instances]:
        """Detections of each image.

        Args:
            detected_instances: per image ``pred_boxes`` and ``pred_classes`` in the coordinates of the network's
                input, for which only the other predictions, such as masks, are then made.
            do_postprocess: bring them to the size of the result.
        Returns:
            One dict ``{"instances": …}`` for each image; the bare instances, in the coordinates of the network's
            input, without post-processing.
        """
        assert not self.training, "inference() is for models in evaluation mode: call model.eval() first"
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self._propose(images, features, batched_inputs, None)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            detected = [instances.to(self.device) for instances in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, detected)
        if do_postprocess:
            return GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)
        return results

    def preprocess_image(self, batched_inputs: Inputs) -> ImageList:
        """The images, normalised and padded to one batch."""
        return normalized_images(batched_inputs, self.pixel_mean, self.pixel_std, self.backbone)

    def _propose(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        batched_inputs: Inputs,
        gt_instances: list[Instances] | None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposals from the generator or, without one, from the inputs, and the generator's losses."""
        if self.proposal_generator is not None:
            return self.proposal_generator(images, features, gt_instances)
        for i, entry in enumerate(batched_inputs):
            assert "proposals" in entry, f"input {i} has no 'proposals', which a model without generator needs"
        return [entry["proposals"].to(self.device) for entry in batched_inputs], {}

    def visualize_training(self, batched_inputs: Inputs, proposals: list[Instances]) -> None:
        """Puts a picture of the first image into the event storage: ground truth, and the best 20 proposals."""
        # Needed for pictures alone: they bring matplotlib.
        from detectron2.data.detection_utils import convert_image_to_rgb
        from detectron2.utils.visualizer import Visualizer

        entry, best = batched_inputs[0], proposals[0]
        image = convert_image_to_rgb(entry["image"].permute(1, 2, 0), self.input_format)
        truth = Visualizer(image, None).overlay_instances(boxes=entry["instances"].gt_boxes.to("cpu"))
        boxes = best.proposal_boxes.tensor[:20].detach().cpu().numpy()
        predicted = Visualizer(image, None).overlay_instances(boxes=boxes)
        picture = np.concatenate((truth.get_image(), predicted.get_image()), axis=1).transpose(2, 0, 1)
        get_event_storage().put_image("Left: GT bounding boxes;  Right: Predicted proposals", picture)

    @staticmethod
    def _postprocess(
        instances: list[Instances], batched_inputs: Inputs, image_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        """One dict ``{"instances": …}`` for each image, in the size of its result."""
        return [
            {"instances": detector_postprocess(detected, *output_size(entry, size))}
            for detected, entry, size in zip(instances, batched_inputs, image_sizes, strict=True)
        ]


@META_ARCH_REGISTRY.register()
class ProposalNetwork(nn.Module):
    """Backbone and proposal generator only; results are dicts ``{"proposals": …}``."""

    pixel_mean: Tensor  # (C, 1, 1)
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        register_pixel_statistics(self, pixel_mean, pixel_std)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: Inputs) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses by name in training, otherwise one dict ``{"proposals": …}`` for each image.

        The inputs are those of `GeneralizedRCNN`.
        """
        images = normalized_images(batched_inputs, self.pixel_mean, self.pixel_std, self.backbone)
        features = self.backbone(images.tensor)
        gt_instances = None
        if "instances" in batched_inputs[0]:
            gt_instances = [entry["instances"].to(self.device) for entry in batched_inputs]
        proposals, losses = self.proposal_generator(images, features, gt_instances)
        if self.training:
            return losses
        return [
            {"proposals": detector_postprocess(found, *output_size(entry, size))}
            for found, entry, size in zip(proposals, batched_inputs, images.image_sizes, strict=True)
        ]
