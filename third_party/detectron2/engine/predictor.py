"""``DefaultPredictor``: one image in, the model's output for it out."""

from typing import Any

import numpy as np
import torch

from detectron2.config import CfgNode


class DefaultPredictor:
    """Predicts one image at a time with the model, weights and test-time resizing of a config.

    Attributes:
        metadata: of the first data set in ``cfg.DATASETS.TEST``; absent if there is none.
        cfg, model, aug (the resizing), input_format ("RGB" or "BGR", what the model takes).
    """

    def __init__(self, cfg: CfgNode) -> None:
        import detectron2.data.transforms as T
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.data import MetadataCatalog
        from detectron2.modeling import build_model

        self.cfg = cfg.clone()  # so that the model may change it
        self.input_format: str = cfg.INPUT.FORMAT
        if self.input_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {self.input_format!r}; DefaultPredictor works with RGB and BGR")
        self.model = build_model(self.cfg)
        self.model.eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.aug = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """The model's output for one image.

        Args:
            original_image: (H, W, C) in BGR order, whatever the model takes.
        """
        if self.input_format == "RGB":
            original_image = original_image[:, :, ::-1]
        height, width = original_image.shape[:2]
        image = self.aug.get_transform(original_image).apply_image(original_image)
        tensor = torch.as_tensor(image.astype("float32").transpose(2, 0, 1)).to(self.cfg.MODEL.DEVICE)
        return self.model([{"image": tensor, "height": height, "width": width}])[0]
