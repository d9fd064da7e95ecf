"""The detector from Python::

import detection

detector = detection.load("Detic_LI_CLIP_R5021k_640b64_4x_ft4x_max-size_pomp", "model_final.pth")
detector.set_classes(["red car", "traffic cone"], prompt="prompt.pth")
for found in detector.predict("street.jpg"):
    print(found.class_name, found.score, found.box)
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detection.checkpoint import DeticCheckpointer
from detection.custom_vocabulary import class_texts_of
from detection.name_merging import merge_names
from detection.reset_classifier import reset_cls_test
from detection.results import DetectionResult
from detection.setup import load_config
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances
from prompt_pretrain.class_embeddings import ClassEmbeddings, resolve_class_embeddings
from prompt_pretrain.class_groups import ClassGroups
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.classification.decoding import ImageError
from prompt_pretrain.clip import Clip
from prompt_pretrain.custom_vocabulary import embed_classes, embed_names, is_embedding_file
from prompt_pretrain.errors import InputError
from prompt_pretrain.image_inputs import ImageInput, open_inputs
from prompt_pretrain.predictor import Predictor, padded_size
from prompt_pretrain.prompt import SoftPrompt
from prompt_pretrain.run_setup import choose_device, explained_loading, find_config_file
from prompt_pretrain.strict_loading import CLASS_NAMES, names_in
from prompt_pretrain.vocabulary import Vocabulary

__all__ = ["Detector", "load"]
_log = logging.getLogger(__name__)
# Who changes one of these says what the classes are.
_CLASS_KEYS = frozenset(
    {f"MODEL.CLASS_EMBEDDINGS.{key}" for key in ("PROMPT", "CLIP", "VOCABULARY", "PATH")}
    | {"MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH"}
)
CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "configs" / "detection"


def load(
    config_or_name: CfgNode | str | os.PathLike,
    weights: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    *,
    overrides: Sequence[Any] = (),
) -> "Detector":
    """A detector, ready to predict.

    Its classes are those that ``MODEL.CLASS_EMBEDDINGS`` of the config names; or else those that the weights were
    trained on, which checkpoints of this project tell; or else those of ``ZEROSHOT_WEIGHT_PATH``, or those stored in
    the weights. :meth:`Detector.set_classes` gives it others.

    Args:
        config_or_name: a config; a YAML file; or the name of one in ``configs/detection``, without ``.yaml``.
        weights: checkpoint (``.pth``, ``.pkl``, ``.safetensors``); default: ``MODEL.WEIGHTS`` of the config. An empty
            text leaves the model as it is initialised.
        device: default: CUDA where there is a device, else the CPU.
        overrides: ``KEY, VALUE, …`` over the config.
    Raises:
        InputError: no such config, unknown keys, no weights, class embeddings that do not fit.
    """
    cfg = _inference_config(_read_config(config_or_name, overrides), device)
    path = cfg.MODEL.WEIGHTS if weights is None else os.fspath(weights)
    if weights is None and not path:
        raise InputError("no weights: give a checkpoint, or set MODEL.WEIGHTS in the config")
    asked = any(str(key) in _CLASS_KEYS for key in overrides[::2])
    trouble = None
    try:
        embeddings = _configured_embeddings(cfg)
    except InputError as error:  # such as a json that has been moved since the training: the weights may know
        if asked or not path:
            raise
        embeddings, trouble = None, error
    if embeddings is not None:
        cfg.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM = embeddings.width
    built = cfg.clone()
    built.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH = "rand"  # the classifier comes later, from weights or embeddings
    model = build_model(built).eval()
    names, stored = _load_weights(model, path) if path else ((), None)
    if not cfg.MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS:
        count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        return Detector(cfg, model, names if len(names) == count else _training_names(cfg) or _numbered(count))
    if trouble is not None:
        if stored is None or not stored.class_names:
            raise trouble
        _log.warning("the classes are those that the weights were trained on: %s", trouble)
    if stored is not None and not asked and _is_of_other_training(cfg, embeddings, stored):
        _log.info("classes: the %d that %s was trained on", len(stored), path)
        embeddings = stored
    if embeddings is not None:
        return Detector(cfg, model).set_classes(embeddings)
    # Class embeddings of another number of classes are not loaded; random ones would detect nothing but noise.
    if stored is None or len(stored) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        return Detector(cfg, model)
    return Detector(cfg, model, stored.class_names or _training_names(cfg) or _numbered(len(stored)))


class Detector(Predictor[DetectionResult]):
    """A model with the test-time settings of its config.

    Attributes:
        cfg, model: as built; the model is in evaluation mode.
        class_names: what it looks for; empty where nobody has said.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, class_names: Sequence[str] = ()) -> None:
        self.cfg = cfg
        self.model = model
        self.class_names = tuple(class_names)
        self._groups: ClassGroups | None = None
        self._augmentation = _test_augmentation(cfg)
        self._rgb = cfg.INPUT.FORMAT == "RGB"
        default = cfg.INPUT.TEST_INPUT_TYPE == "default"
        self.longest_side = cfg.INPUT.MAX_SIZE_TEST if default else cfg.INPUT.TEST_SIZE

    def __repr__(self) -> str:
        return f"Detector({self.cfg.MODEL.META_ARCHITECTURE}, {len(self.class_names)} classes, {self.device})"

    @property
    def device(self) -> torch.device:
        """Of the model's parameters."""
        return next(self.model.parameters()).device

    def set_classes(
        self,
        classes: Sequence[str] | Vocabulary | ClassGroups | ClassEmbeddings | str | os.PathLike,
        *,
        prompt: ClassTexts | SoftPrompt | str | None = None,
        clip: Clip | str | None = None,
        names: Sequence[str] | str | None = None,
    ) -> "Detector":
        """Look for other classes from now on. Returns the detector itself.

        Args:
            classes: names; a vocabulary or what :func:`~prompt_pretrain.vocabulary.load_vocabulary` takes (a registered
                name such as "lvis_v1", a .txt or .json file, a comma list); class embeddings or a file of them (.npy,
                .safetensors), which then need no encoding; or groups of names: the best name of a class counts, and
                detections of background words are dropped.
            prompt: a prompt, its file, or a template. Default: the one of the config, which the model was trained with;
                another one than that costs accuracy.
            clip: the CLIP that encodes names, or its name. Default: the one of the config.
            names: class names of an embedding file without any, or a vocabulary's name.
        Raises:
            InputError: a model with a learned classifier, empty names, embeddings of another width than the model's.
        """
        head = self.cfg.MODEL.ROI_BOX_HEAD
        if not head.USE_ZEROSHOT_CLS:
            raise InputError(
                "this model has a learned classifier, its classes are fixed; set_classes needs a config with "
                "MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS True"
            )
        groups = classes if isinstance(classes, ClassGroups) else None
        if groups is not None:
            classes = groups.names
        if is_embedding_file(classes):
            classes = ClassEmbeddings.load(classes)
        if not isinstance(classes, ClassEmbeddings):
            if prompt is None or clip is None:
                texts, clip_name = class_texts_of(self.cfg, prompt)
                prompt, clip = texts, clip or clip_name
            classes = embed_classes(
                classes, prompt, clip, cache_dir=self.cfg.MODEL.CLASS_EMBEDDINGS.CACHE_DIR, device=self.device
            )
        if names is not None:
            classes = embed_names(classes, names)
        classes.check(width=head.ZEROSHOT_WEIGHT_DIM)
        reset_cls_test(self.model, classes.embeddings.t().contiguous().to(self.device), len(classes))
        self._groups = groups
        self.class_names = groups.reported_names if groups else classes.class_names or _numbered(len(classes))
        return self

    def predict(
        self, inputs: Any, *, batch_size: int = 4, min_score: float = 0.0, skip_bad: bool = False
    ) -> DetectionResult | list[DetectionResult]:
        """Detect in one image, or in many.

        Args:
            inputs: see :func:`~prompt_pretrain.image_inputs.open_inputs`.
            batch_size: images per step of the model. Only images that need the same padding share a step, so results
                do not depend on it.
            min_score: drop detections below it. The config's ``SCORE_THRESH_TEST`` and ``DETECTIONS_PER_IMAGE`` hold
                anyway.
            skip_bad: leave out images that cannot be used, with a warning, instead of raising.
        Returns:
            The result of one image for an array, ``PIL.Image`` or image file; a list for a list, folder or video.
        Raises:
            InputError: no classes set, bad inputs.
        """
        stream = open_inputs(inputs)
        results = list(self._detect(stream.images, batch_size, min_score, skip_bad and not stream.single))
        return results[0] if stream.single else results

    def stream(
        self, inputs: Any, *, batch_size: int = 4, min_score: float = 0.0, skip_bad: bool = False
    ) -> Iterator[DetectionResult]:
        """Like :meth:`predict`, one result after the other in the order of the inputs: for more than memory holds."""
        return self._detect(open_inputs(inputs).images, batch_size, min_score, skip_bad)

    def _detect(
        self, images: Iterator[ImageInput | ImageError], batch_size: int, min_score: float, skip_bad: bool
    ) -> Iterator[DetectionResult]:
        for result in self.results(images, batch_size=batch_size, skip_bad=skip_bad):
            yield result.above(min_score) if min_score > 0 else result

    def prepare(self, image: ImageInput, index: int) -> dict[str, Any]:
        """The model's input for one image, still on the CPU."""
        pixels = image.pixels[:, :, ::-1] if self._rgb else image.pixels
        resized = T.AugInput(pixels)
        self._augmentation(resized)
        tensor = torch.as_tensor(resized.image.transpose(2, 0, 1).copy())
        height, width = pixels.shape[:2]
        return {"image": tensor, "height": height, "width": width, "source": image.source, "index": index}

    def padded_size(self, image: Tensor) -> tuple[int, int]:
        """Height and width to which the model pads an image."""
        backbone = getattr(self.model, "backbone", None)  # Deformable DETR has one inside its transformer
        return padded_size(image, int(getattr(backbone, "size_divisibility", 0)))

    @torch.no_grad()
    def run(self, entries: Sequence[dict[str, Any]]) -> list[DetectionResult]:
        """One result per entry of a batch."""
        inputs = [{**entry, "image": entry["image"].to(self.device)} for entry in entries]
        outputs = self.model(inputs)
        return [
            DetectionResult(self._reported(output["instances"]), self.class_names, entry["source"], entry["index"])
            for output, entry in zip(outputs, entries, strict=True)
        ]

    def _reported(self, found: Instances) -> Instances:
        """Detections of classes, on the CPU, from those of names."""
        if self._groups is not None:
            found = merge_names(found, self._groups, self.cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST)
        return found.to("cpu")


def _read_config(config_or_name: CfgNode | str | os.PathLike, overrides: Sequence[Any]) -> CfgNode:
    if isinstance(config_or_name, CfgNode):
        cfg = config_or_name.clone()
        cfg.defrost()
        cfg.merge_from_list(list(overrides))
        return cfg
    return load_config(find_config_file(config_or_name, CONFIG_FOLDER), [str(each) for each in overrides])


def _inference_config(cfg: CfgNode, device: str | torch.device | None) -> CfgNode:
    """The same model without what only training needs and what would ask for further files."""
    cfg.MODEL.DEVICE = choose_device(device)
    cfg.MODEL.WITH_CAPTION = False
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False
    cfg.MODEL.ROI_BOX_HEAD.IGNORE_ZERO_CATS = False
    cfg.MODEL.TIMM.PRETRAINED = False
    return cfg


def _configured_embeddings(cfg: CfgNode) -> ClassEmbeddings | None:
    """The embeddings that the config names and whose files exist; None leaves those of the weights."""
    node, head = cfg.MODEL.CLASS_EMBEDDINGS, cfg.MODEL.ROI_BOX_HEAD
    if not head.USE_ZEROSHOT_CLS:
        return None
    if node.PATH or node.VOCABULARY:
        return resolve_class_embeddings(cfg, device=cfg.MODEL.DEVICE)
    if not os.path.isfile(head.ZEROSHOT_WEIGHT_PATH):
        return None
    embeddings = ClassEmbeddings.load(head.ZEROSHOT_WEIGHT_PATH)
    names = _training_names(cfg)
    return embed_names(embeddings, names) if names and not embeddings.class_names else embeddings


def _is_of_other_training(cfg: CfgNode, configured: ClassEmbeddings | None, stored: ClassEmbeddings) -> bool:
    """Whether the weights know their classes, and these are not those of the config, which nobody has chosen."""
    node = cfg.MODEL.CLASS_EMBEDDINGS
    if not stored.class_names or (configured is not None and (node.PATH or node.VOCABULARY)):
        return False
    if configured is None:
        return bool(node.PATH or node.VOCABULARY) or len(stored) != cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if not configured.class_names:
        return len(configured) != len(stored)
    return configured.class_names != stored.class_names


def _load_weights(model: nn.Module, path: str) -> tuple[tuple[str, ...], ClassEmbeddings | None]:
    """Names of the classes of the training, where the file tells them, and the frozen classifier in it, if any."""
    if "://" not in path and not os.path.isfile(path):
        raise InputError(f"no weights {path}; check the path or MODEL.WEIGHTS")
    checkpointer = DeticCheckpointer(model)
    with explained_loading(path):
        names = names_in(checkpointer.load_all(path), CLASS_NAMES)
    if checkpointer.stored_classifier is None:
        return names, None
    rows = checkpointer.stored_classifier[:, :-1].t().float().contiguous()
    return names, ClassEmbeddings(rows, names if len(names) == len(rows) else (), source=path)


def _training_names(cfg: CfgNode) -> tuple[str, ...]:
    """Class names of the training set if they are known and as many as the model has classes, else none."""
    for name in cfg.DATASETS.TRAIN[:1]:
        names = MetadataCatalog.get(name).get("thing_classes") or ()
        if len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            return tuple(names)
    return ()


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(count))


def _test_augmentation(cfg: CfgNode) -> T.Augmentation:
    if cfg.INPUT.TEST_INPUT_TYPE == "default":
        return T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    from detection.data.transforms import build_custom_augmentation

    return T.AugmentationList(build_custom_augmentation(cfg, False))
