"""ZSSeg's inference as published, and a model and scenes to measure it and ours on.

Written from the paper and its description: one image at a time, every mask cropped and resized by itself, all crops
through open_clip's tower in float32, and a dense map of scores.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import segmentation  # noqa: F401  makes detectron2 and mask_former importable
from detectron2.modeling import build_model
from segmentation.setup import load_config
from segmentation.zero_shot_mask_former import ZeroShotMaskFormer

CONFIG = "configs/segmentation/coco-stuff-164k-171/zero_shot_maskformer_R101c_single_prompt_bs32_60k.yaml"
NUM_CLASSES, NUM_SEEN = 171, 156
_VIT_B_16 = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 1},  # not used
}


def build_segmenter(device: str, queries: int) -> ZeroShotMaskFormer:
    """The model for inference, with a head that answers as told."""
    model = make_segmenter(device, queries).eval().requires_grad_(False)
    model.sem_seg_head = SceneHead(model.sem_seg_head)
    return model


def make_segmenter(device: str, queries: int) -> ZeroShotMaskFormer:
    """R101c and ViT-B/16 with random weights and random class embeddings."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vit_b_16.json"
        path.write_text(json.dumps(_VIT_B_16))
        root = Path(__file__).resolve().parents[2]
        options = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device, "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME", str(path)]
        cfg = load_config(str(root / CONFIG), [*options, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", str(queries)])
        model = build_model(cfg)
    names = [f"class {index}" for index in range(NUM_CLASSES)]
    model.set_classes(names, [int(index < NUM_SEEN) for index in range(NUM_CLASSES)])
    model.clip_adapter.set_text_features(names, torch.randn(NUM_CLASSES, model.clip_adapter.embed_dim))
    return model


class SceneHead(nn.Module):
    """A head that computes everything and then answers as a trained one would about a given scene.

    Random weights alone would give masks without shape and queries without opinion.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.scenes: list[dict[str, Tensor]] = []

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = self.head(features)
        answers = {name: torch.stack([scene[name] for scene in self.scenes]) for name in ("pred_logits", "pred_masks")}
        assert all(answers[name].shape == outputs[name].shape for name in answers)
        return answers


def make_scene(model: ZeroShotMaskFormer, size: tuple[int, int], seed: int, *, empty: int = 0) -> dict[str, Any]:
    """An input (``image``, ``height``, ``width``) and ``scene``, the head's answer about it.

    The image has up to a dozen regions, each with a colour and a texture. Three queries in ten have found one of them:
    their mask is the region with a soft, uneven edge, and their embedding lies near that of its class. The others have
    a mask of some blob, with an embedding near "no object".

    Args:
        empty: number of queries whose mask has no pixel above the threshold.
    """
    random = torch.Generator().manual_seed(seed)
    height, width = size
    queries = model.num_queries
    found = math.ceil(0.3 * queries)
    regions = min(found, 12)
    noise = F.interpolate(torch.randn(1, regions, 5, 6, generator=random), size, mode="bicubic")[0]
    owner = noise.argmax(0)  # (H, W)
    colours = 255 * torch.rand(regions, 3, generator=random)
    texture = F.interpolate(torch.randn(1, regions, height // 8, width // 8, generator=random), size)[0]
    image = colours[owner].permute(2, 0, 1) + 40 * texture.gather(0, owner[None])
    image = (image + 12 * torch.randn(3, height, width, generator=random)).clamp(0, 255).byte()

    small = (height // 4, width // 4)
    lead = noise - noise.masked_fill(F.one_hot(owner, regions).permute(2, 0, 1).bool(), -torch.inf).amax(0)
    lead = F.interpolate(lead[None], small, mode="bilinear")[0]  # above 0 inside of a region
    blobs = F.interpolate(torch.randn(1, queries, 4, 5, generator=random), small, mode="bicubic")[0]
    region = torch.arange(found) % regions
    masks = 6 * blobs - 6
    masks[:found] = 20 * lead[region] + blobs[:found]
    peak = masks.flatten(1).amax(1)
    masks += (1.5 - peak).clamp(min=0)[:, None, None]  # every mask has a pixel
    if empty:
        masks[-empty:] -= 20

    classes = torch.randint(NUM_CLASSES, (regions,), generator=random)
    adapter = model.clip_adapter
    rows = adapter.class_features(model.vocabulary.of([])[0]).cpu()
    target = torch.full((queries,), NUM_CLASSES)
    target[:found] = classes[region]
    direction = F.normalize(torch.randn(queries, rows.shape[1], generator=random), dim=1)
    embeddings = 0.35 * rows[target] + 0.65 * direction  # cosines of about 0.45 with their own class, 0 with others
    device = model.device
    scene = {"pred_logits": embeddings.to(device), "pred_masks": masks.to(device)}
    return {"image": image, "height": height, "width": width, "scene": scene}


@torch.no_grad()
def as_published(model: ZeroShotMaskFormer, record: dict[str, Any]) -> Tensor:
    """(K, height, width) scores of one image."""
    adapter = model.region_clip_adapter
    class_names, seen = model.vocabulary.of([record])
    classes = adapter.class_features(class_names)
    images = model.preprocess([record])
    outputs = model.sem_seg_head(model.backbone(images.tensor))
    query = outputs["pred_logits"][0]
    query = 100 * (query / query.norm(dim=-1, keepdim=True)) @ classes.T
    masks = F.interpolate(outputs["pred_masks"], images.tensor.shape[-2:], mode="bilinear", align_corners=False)
    height, width = record["image"].shape[-2:]
    masks = masks[0, :, :height, :width].sigmoid()

    image = record["image"].to(masks)
    crops, valid = [], []
    for mask in masks:
        inside = mask > adapter.mask_thr
        valid.append(bool(inside.any()))
        if not valid[-1]:
            continue
        ys, xs = inside.nonzero().T
        fill = adapter.pixel_mean[0]
        crop = torch.where(inside, image, fill)[:, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        crop = (crop - fill) / adapter.pixel_std[0]
        crops.append(F.interpolate(crop[None], (224, 224), mode="bicubic", align_corners=False))
    clip_scores = torch.ones(len(masks), len(class_names), device=masks.device)
    if crops:
        features = adapter.clip.model.encode_image(torch.cat(crops))
        logits = 100 * F.normalize(features, dim=1) @ classes.T
        clip_scores[torch.tensor(valid, device=masks.device)] = logits[:, :-1].softmax(-1)
    scores = query.softmax(-1)[:, :-1]
    weight, seen = model.clip_ensemble_weight, seen.to(masks)
    trusting_query = scores**weight * clip_scores ** (1 - weight)
    trusting_clip = scores ** (1 - weight) * clip_scores**weight
    maps = torch.einsum("qc,qhw->chw", seen * trusting_query + (1 - seen) * trusting_clip, masks)
    return F.interpolate(maps[None], (record["height"], record["width"]), mode="bilinear", align_corners=False)[0]
