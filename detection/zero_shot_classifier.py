"""A classifier whose weights are frozen class embeddings: scaled cosine similarity of regions and class names."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.file_io import PathManager
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.errors import InputError
from prompt_pretrain.metadata import metadata_file

__all__ = ["RANDOM", "ZeroShotClassifier", "classifier_weight", "find_class_rows", "load_class_rows"]

RANDOM = "rand"  # in place of a file: random embeddings, for a model whose vocabulary is set later
_METADATA = Path("datasets") / "metadata"


def classifier_weight(embeddings: Tensor, norm_weight: bool) -> Tensor:
    """(D, C + 1) columns of C class embeddings (C, D) and a zero column for background.

    Args:
        norm_weight: scale the columns to unit norm; the zero column stays zero.
    """
    columns = F.pad(embeddings.float().t(), (0, 1))
    return (F.normalize(columns, dim=0) if norm_weight else columns).contiguous()


def load_class_rows(path: str, num_classes: int, width: int) -> Tensor:
    """(C, D) float32 class embeddings of a file, checked for their number and width.

    Raises:
        InputError: no such file, a damaged one, or one of another number of classes or width.
    """
    embeddings = ClassEmbeddings.load(find_class_rows(path))
    if embeddings.width != width:
        raise InputError(
            f"{path} holds embeddings of width {embeddings.width} but MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM is "
            f"{width}; set ZEROSHOT_WEIGHT_DIM to {embeddings.width} or give embeddings of the CLIP it was trained with"
        )
    embeddings.check(num_classes=num_classes)
    return embeddings.embeddings


def find_class_rows(path: str) -> str:
    """The local file of a path or URL; published paths below ``datasets/metadata`` are found from any folder."""
    if Path(path).parent == _METADATA and not Path(path).is_file():
        try:
            return str(metadata_file(Path(path).name))
        except InputError:
            return path  # the reader's error says how to make one
    return PathManager.get_local_path(path)


class ZeroShotClassifier(nn.Module):
    """Region features → D → logits: ``norm_temperature`` times the cosine with each class embedding, background last.

    The background column is zero, so the background's logit is 0, or the bias.

    Attributes:
        zs_weight: (D, C + 1) buffer; a parameter for random embeddings.
        cls_bias: (1,) parameter, or None.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        num_classes: int,
        zs_weight_path: str,
        zs_weight_dim: int = 512,
        use_bias: float = 0.0,
        norm_weight: bool = True,
        norm_temperature: float = 50.0,
    ) -> None:
        """
        Args:
            input_shape: of the region features, or their number.
            num_classes: C, without background.
            zs_weight_path: file of (C, D) class embeddings, or ``"rand"``.
            zs_weight_dim: D.
            use_bias: start of a learned bias that all classes share, if negative; otherwise there is none.
            norm_weight: cosine similarity; otherwise the plain product, without temperature.
            norm_temperature: factor on the similarity.
        Raises:
            InputError: the file does not fit.
        """
        super().__init__()
        if isinstance(input_shape, int):
            input_shape = ShapeSpec(channels=input_shape)
        input_size = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        self.norm_weight = norm_weight
        self.norm_temperature = norm_temperature
        self.use_bias = use_bias < 0
        self.cls_bias = nn.Parameter(torch.full((1,), float(use_bias))) if self.use_bias else None
        self.linear = nn.Linear(input_size, zs_weight_dim)
        if zs_weight_path == RANDOM:
            rows = torch.empty(num_classes, zs_weight_dim).normal_(std=0.01)
            self.zs_weight = nn.Parameter(classifier_weight(rows, norm_weight))
        else:
            rows = load_class_rows(zs_weight_path, num_classes, zs_weight_dim)
            self.register_buffer("zs_weight", classifier_weight(rows, norm_weight))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "zs_weight_path": head.ZEROSHOT_WEIGHT_PATH,
            "zs_weight_dim": head.ZEROSHOT_WEIGHT_DIM,
            "use_bias": head.USE_BIAS,
            "norm_weight": head.NORM_WEIGHT,
            "norm_temperature": head.NORM_TEMP,
        }

    def forward(self, x: Tensor, classifier: Tensor | None = None) -> Tensor:
        """(R, C + 1) logits of region features (R, input size).

        Args:
            classifier: (n, D) rows to compare with instead of the stored embeddings; then the logits are (R, n).
        """
        features = self.region_features(x)
        logits = features @ (self.zs_weight if classifier is None else self.columns(classifier))
        return logits if self.cls_bias is None else logits + self.cls_bias

    def region_features(self, x: Tensor) -> Tensor:
        """(R, D) features whose product with the columns of classes gives logits, but for the bias."""
        x = self.linear(x)
        return self.norm_temperature * F.normalize(x, dim=1) if self.norm_weight else x

    def columns(self, classifier: Tensor) -> Tensor:
        """(D, n) classifier columns of (n, D) rows."""
        columns = classifier.t()
        return F.normalize(columns, dim=0) if self.norm_weight else columns

    def set_weight(self, zs_weight: Tensor) -> None:
        """Compare with other classes from now on: (D, C + 1) columns, background last (see `classifier_weight`).

        They are no part of the state dict, so a checkpoint of the model's own classes still fits.
        """
        del self.zs_weight  # a parameter or a persistent buffer
        self.register_buffer("zs_weight", zs_weight, persistent=False)
