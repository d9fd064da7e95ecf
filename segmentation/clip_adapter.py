"""CLIP beside a segmenter: text features of class names, and classification of masked crops (ZSSeg, section 3.3)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from segmentation.clip_vision import PRECISIONS, encode_images
from segmentation.mask_crops import crop_boxes, resize_crops
from segmentation.prompt_learners import is_trainable

__all__ = ["LOGIT_SCALE", "ClipAdapter", "MaskFormerClipAdapter"]

LOGIT_SCALE = 100.0  # whatever the checkpoint's logit_scale, as published
CROP_SIDE = 224  # whatever the model's own size, as published
MASK_FILLS = ("mean", "zero")


class ClipAdapter(nn.Module):
    """A frozen CLIP and a prompt learner.

    Features of classes are kept until weights are loaded or the learner's parameters change. While gradients are
    recorded and the learner is trained they are computed at every call.
    """

    def __init__(self, clip: Clip, prompt_learner: nn.Module, *, logit_scale: float = LOGIT_SCALE) -> None:
        """Join them.

        Args:
            logit_scale: logits / cosine similarity; 0 for the CLIP's own.
        Raises:
            InputError: a negative scale.
        """
        super().__init__()
        if logit_scale < 0:
            raise InputError(
                f"MODEL.CLIP_ADAPTER.LOGIT_SCALE is {logit_scale}; expected more than 0, or 0.0 for the CLIP's own"
            )
        self.logit_scale = logit_scale or float(clip.logit_scale)
        self.clip_model = clip.model
        self.prompt_learner = prompt_learner
        self.clip = clip
        self._given: dict[str, Tensor] = {}
        self._features: dict[str, Tensor] = {}
        self._features_of: list[Tensor] = []  # parameters of the learner that the kept features are of
        self._rows: tuple[tuple[str, ...], Tensor] | None = None  # features of the names asked for last

    @property
    def embed_dim(self) -> int:
        return self.clip.embed_dim

    def text_features(self, class_names: Sequence[str]) -> Tensor:
        """(K, D) unit-norm features of class names, which are stripped of blanks around them."""
        names = tuple(name.strip() for name in class_names)
        if torch.is_grad_enabled() and is_trainable(self.prompt_learner) and not self._given.keys() >= set(names):
            return self.prompt_learner.encode(self.clip, names)
        self._forget_features(unless_of=[parameter.detach() for parameter in self.prompt_learner.parameters()])
        device = self.clip.device
        if self._rows is None or self._rows[0] != names or self._rows[1].device != device:
            # Whatever asked first, the features must serve everyone: with gradients, and in full precision.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
                self._rows = names, self._collect_features(names, device)
        return self._rows[1]

    def class_features(self, class_names: Sequence[str]) -> Tensor:
        """Rows to compare images with: here :meth:`text_features`."""
        return self.text_features(class_names)

    def set_text_features(self, class_names: Sequence[str], features: Tensor) -> None:
        """Use given (K, D) features, normalised here, for these names instead of those of the prompt learner.

        Raises:
            InputError: not one row of this CLIP's width per name.
        """
        if features.shape != (len(class_names), self.embed_dim):
            raise InputError(
                f"features of {len(class_names)} classes have shape {tuple(features.shape)}; {self.clip.clip_id} needs "
                f"{(len(class_names), self.embed_dim)}"
            )
        features = F.normalize(features.detach().float(), dim=1)
        self._given |= dict(zip([name.strip() for name in class_names], features, strict=True))
        self._rows = None

    def forget_text_features(self) -> None:
        """Go back to the prompt learner for all names."""
        self._given.clear()
        self._rows = None

    def forward(self, images: Tensor, class_names: Sequence[str]) -> Tensor:
        """(B, K) logits of images (B, 3, H, W), normalised for CLIP."""
        features = F.normalize(self.encode_image(images).float(), dim=1)
        return similarity_logits(self.class_features(class_names), features, self.logit_scale)

    @torch.no_grad()
    def classify_images(self, images: Sequence[Tensor], class_names: Sequence[str]) -> Tensor:
        """(B, K) logits of RGB images (3, H, W) of one size with values in [0, 255]."""
        mean, std = (torch.tensor(x).view(-1, 1, 1).to(images[0]) for x in (self.clip.mean, self.clip.std))
        return ClipAdapter.forward(self, (torch.stack(list(images)) / 255 - mean) / std, class_names)

    def encode_image(self, images: Tensor, *, precision: str = "fp32") -> Tensor:
        """(B, D) features of normalised images of any size; gradients stop at the image tower."""
        with torch.no_grad():
            return encode_images(self.clip, images, precision=precision)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget_features()

    def _collect_features(self, names: tuple[str, ...], device: torch.device) -> Tensor:
        known = self._features | self._given
        new = [name for name in dict.fromkeys(names) if name not in known]
        if new:
            found = dict(zip(new, self.prompt_learner.encode(self.clip, new), strict=True))
            self._features |= found
            known |= found
        return torch.stack([known[name].to(device) for name in names])

    def _forget_features(self, *, unless_of: list[Tensor] | None = None) -> None:
        """Drop features that were kept, or only those that are not of the learner's parameters ``unless_of``."""
        if unless_of is not None:
            # By content: in-place edits of parameter.data count no version.
            same = len(unless_of) == len(self._features_of) and all(
                torch.equal(old.to(new.device), new) for old, new in zip(self._features_of, unless_of, strict=True)
            )
            if same:
                return
            self._features_of = [parameter.clone() for parameter in unless_of]
        self._features.clear()
        self._rows = None


class MaskFormerClipAdapter(ClipAdapter):
    """An adapter for masks: one more class, "no object", which is learned, and classification of crops.

    ``pixel_mean`` and ``pixel_std`` (1, 3, 1, 1) are CLIP's, for values in [0, 255].
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        clip: Clip,
        prompt_learner: nn.Module,
        *,
        mask_fill: str = "mean",
        mask_expand_ratio: float = 1.0,
        mask_thr: float = 0.5,
        mask_matting: bool = False,
        region_resized: bool = True,
        region_size: int = CROP_SIDE,
        region_precision: str = "fp32",
        logit_scale: float = LOGIT_SCALE,
    ) -> None:
        """Set up how masks are cropped.

        Args:
            mask_fill: what stands outside of the mask, CLIP's "mean" or "zero".
            mask_expand_ratio: side of a crop / side of the mask's box, positive.
            mask_thr: probability above which a pixel belongs to the mask.
            mask_matting: weigh pixels by the probability instead.
            region_resized: resize crops; otherwise encode each at its own size.
            region_size: side of resized crops; 0 for the size that CLIP was trained with.
            region_precision: "fp32", or "bf16" for the matrix products that encode crops.
            logit_scale: logits / cosine similarity, of queries and of crops; 0 for the CLIP's own.
        Raises:
            InputError: another fill or precision, a ratio that is not positive, a negative size or scale.
        """
        super().__init__(clip, prompt_learner, logit_scale=logit_scale)
        if mask_fill not in MASK_FILLS:
            raise InputError(f"MODEL.CLIP_ADAPTER.MASK_FILL is {mask_fill!r}; expected one of {', '.join(MASK_FILLS)}")
        if not mask_expand_ratio > 0:
            raise InputError(f"MODEL.CLIP_ADAPTER.MASK_EXPAND_RATIO is {mask_expand_ratio}; it must be greater than 0")
        if region_size < 0:
            raise InputError(
                f"MODEL.CLIP_ADAPTER.REGION_SIZE is {region_size}; expected pixels, or 0 for CLIP's own size"
            )
        if region_precision not in PRECISIONS:
            raise InputError(
                f"MODEL.CLIP_ADAPTER.REGION_PRECISION is {region_precision!r}; expected one of {', '.join(PRECISIONS)}"
            )
        self.region_precision = region_precision
        self.mask_fill = mask_fill
        self.mask_expand_ratio = mask_expand_ratio
        self.mask_thr = mask_thr
        self.mask_matting = mask_matting
        self.region_resized = region_resized
        self.region_size = region_size or clip.image_size
        self.non_object_embedding = nn.Parameter(torch.empty(1, clip.embed_dim))
        nn.init.normal_(self.non_object_embedding, std=clip.text_width**-0.5)
        for name, values in (("pixel_mean", clip.mean), ("pixel_std", clip.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255)

    def class_features(self, class_names: Sequence[str]) -> Tensor:
        """(K + 1, D): text features of the classes, then "no object"."""
        return torch.cat([self.text_features(class_names), F.normalize(self.non_object_embedding, dim=1)])

    def query_logits(self, embeddings: Tensor, class_features: Tensor) -> Tensor:
        """(…, K + 1) logits of query embeddings (…, D), which are normalised here."""
        norms = embeddings.norm(dim=-1, keepdim=True)
        return similarity_logits(class_features, embeddings / norms, self.logit_scale)

    @torch.no_grad()
    def forward(  # type: ignore[override]
        self, image: Tensor, class_names: Sequence[str], masks: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Logits (n, K + 1) of the n masks that have a pixel, None for n = 0, and which those are (Q,) bool.

        Args:
            image: (3, H, W) RGB, values in [0, 255], not padded.
            class_names: K names.
            masks: (Q, H, W) probabilities.
        """
        (logits,), (valid,) = self.classify([image], class_names, [masks])
        return logits, valid

    @torch.no_grad()
    def classify(
        self, images: Sequence[Tensor], class_names: Sequence[str], masks: Sequence[Tensor]
    ) -> tuple[list[Tensor | None], list[Tensor]]:
        """:meth:`forward` of several images, whose crops are encoded together."""
        regions, valid = [], []
        for image, own in zip(images, masks, strict=True):
            found, which = self.regions(image, own)
            regions.append(found)
            valid.append(which)
        counts = [len(found) for found in regions]
        if not any(counts):
            return [None] * len(counts), valid
        if self.region_resized:
            features = self._encode_regions(torch.cat([found for found in regions if len(found)]))
        else:
            features = torch.cat([self._encode_regions(crop[None]) for found in regions for crop in found])
        features = F.normalize(features.float(), dim=1)
        logits = similarity_logits(self.class_features(class_names), features, self.logit_scale)
        return [part if len(part) else None for part in logits.split(counts)], valid

    def _encode_regions(self, crops: Tensor) -> Tensor:
        return self.encode_image(crops, precision=self.region_precision)

    @property
    def masks_per_look(self) -> int:
        """Number of masks from which on looking at more of them together makes each no cheaper."""
        return 64 if self.pixel_mean.is_cuda else 8

    def valid_masks(self, masks: Tensor) -> Tensor:
        """(Q,) bool, which of the masks (Q, H, W) have a pixel."""
        return masks.flatten(1).amax(1) > self.mask_thr

    def regions(self, image: Tensor, masks: Tensor) -> tuple[Any, Tensor]:
        """Normalised crops of the masks that have a pixel, and which those are (Q,) bool.

        The crops are one tensor (n, 3, region_size, region_size), or a list of (3, h, w) if they are not resized.
        """
        valid = self.valid_masks(masks)
        binary = masks[valid] > self.mask_thr
        boxes = crop_boxes(binary, self.mask_expand_ratio)
        weights = masks[valid] if self.mask_matting else binary
        normalised = ((image - self.pixel_mean) / self.pixel_std)[0]
        outside = torch.zeros_like(self.pixel_mean) if self.mask_fill == "mean" else -self.pixel_mean / self.pixel_std
        outside = outside.flatten()
        if self.region_resized:
            return resize_crops(normalised, weights, boxes, self.region_size, outside), valid
        crops = []
        for weight, (x1, y1, x2, y2) in zip(weights, boxes.tolist(), strict=True):
            fill = outside[:, None, None]
            crops.append(((normalised - fill) * weight.to(normalised.dtype) + fill)[:, y1:y2, x1:x2])
        return crops, valid


def similarity_logits(class_features: Tensor, features: Tensor, scale: float) -> Tensor:
    """``scale`` · cosine similarity of unit-norm features (…, D) with unit-norm classes (K, D)."""
    return scale * features @ class_features.T.to(features.dtype)
