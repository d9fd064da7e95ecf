"""The segmenter from Python::

import segmentation

segmenter = segmentation.load("zero_shot_maskformer_R101c_pomp_prompt_bs32_60k", "model_final.pth")
segmenter.set_classes(["red car", "wet road", "sky"])
found = segmenter.predict("street.jpg")
print(found.areas, found.label_map)
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.class_groups import ClassGroups
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.clip import Clip
from prompt_pretrain.custom_vocabulary import check_class_names, embed_classes, embed_names, is_embedding_file
from prompt_pretrain.errors import InputError
from prompt_pretrain.image_inputs import ImageInput, open_inputs
from prompt_pretrain.predictor import Predictor, padded_size
from prompt_pretrain.prompt import SoftPrompt
from prompt_pretrain.run_setup import choose_device, explained_loading, find_config_file
from prompt_pretrain.strict_loading import CLASS_NAMES, SEEN_CLASSES, names_in
from prompt_pretrain.vocabulary import Vocabulary, clean_class_name, load_vocabulary
from segmentation.checkpoint import SegmentationCheckpointer
from segmentation.class_argmax import argmax_over_classes
from segmentation.class_counts import classes_of, seen_flags_of
from segmentation.class_embedding_hook import resolve_class_embeddings_of
from segmentation.clip_adapter import ClipAdapter
from segmentation.results import SegmentationResult
from segmentation.setup import check_weights, load_config, take_prompt_from_weights

__all__ = ["Segmenter", "load"]
CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "configs" / "segmentation"
_NO_SEGMENTERS = {
    "OracleMaskFormer": "it needs ground truth",
    "ProposalClipClassifier": "it classifies given masks, and learns a prompt for a ZeroShotMaskFormer",
}


def load(
    config_or_name: CfgNode | str | os.PathLike,
    weights: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    *,
    overrides: Sequence[Any] = (),
) -> "Segmenter":
    """A segmenter, ready to predict.

    Its classes are those that ``MODEL.CLASS_EMBEDDINGS`` of the config names; or else, where the weights tell that they
    were trained on others than the config's training set, those; or else those of the test set, or of the training set.
    :meth:`Segmenter.set_classes` gives it others.

    Args:
        config_or_name: a config; a YAML file; or the name of one in ``configs/segmentation``, without ``.yaml``, with
            its folder where several have that name.
        weights: checkpoint (``.pth``, ``.pkl``, ``.safetensors``); default: ``MODEL.WEIGHTS`` of the config. An empty
            text leaves the model as it is initialised.
        device: default: CUDA where there is a device, else the CPU.
        overrides: ``KEY, VALUE, …`` over the config.
    Raises:
        InputError: no such config, unknown keys, no weights, class embeddings that do not fit, a model that segments
            nothing by itself.
    """
    cfg = _read_config(config_or_name, overrides)
    cfg.MODEL.DEVICE = choose_device(device)
    kind = cfg.MODEL.META_ARCHITECTURE
    if kind in _NO_SEGMENTERS:
        raise InputError(f"{kind} segments nothing by itself: {_NO_SEGMENTERS[kind]}; take the config of a segmenter")
    path = cfg.MODEL.WEIGHTS if weights is None else os.fspath(weights)
    if weights is None and not path:
        raise InputError("no weights: give a checkpoint, or set MODEL.WEIGHTS in the config")
    cfg.MODEL.WEIGHTS = path
    check_weights(path)
    asked = cfg.MODEL.CLASS_EMBEDDINGS.clone()
    if asked.PROMPT:  # becomes the model's own; vocabulary and ready embeddings follow below
        cfg.MODEL.CLASS_EMBEDDINGS.VOCABULARY = cfg.MODEL.CLASS_EMBEDDINGS.PATH = ""
        resolve_class_embeddings_of(cfg)
    take_prompt_from_weights(cfg)
    model = build_model(cfg).eval().requires_grad_(False)
    with explained_loading(path):
        content = SegmentationCheckpointer(model, cfg=cfg).load_all(path) if path else {}
    segmenter = Segmenter(cfg, model, names_in(content, CLASS_NAMES), names_in(content, SEEN_CLASSES))
    if asked.PATH or asked.VOCABULARY:
        segmenter.set_classes(asked.PATH or asked.VOCABULARY, names=asked.VOCABULARY if asked.PATH else None)
    return segmenter


class Segmenter(Predictor[SegmentationResult]):
    """A model with the test-time settings of its config.

    Attributes:
        cfg, model: as built; the model is in evaluation mode.
        class_names: what it looks for; empty where nobody has said.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, trained: Sequence[str] = (), seen: Sequence[str] = ()) -> None:
        """Classes are those of the data set for tests, or else of the one for training, if they are known.

        Args:
            trained: the classes of the training, if they are known; where they are not those of the config's training
                set, they come first.
            seen: those of them that it learned from.
        """
        self.cfg = cfg
        self.model = model
        self.class_names: tuple[str, ...] = ()
        self._groups: ClassGroups | None = None
        self._adapters = [module for module in model.modules() if isinstance(module, ClipAdapter)]
        self._trained = frozenset(map(_folded, seen)) if trained else _seen_names(cfg)
        self._rgb = cfg.INPUT.FORMAT == "RGB"
        self.longest_side = cfg.INPUT.MAX_SIZE_TEST
        self._resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        choices = [
            (names, seen_flags_of(name))
            for name in (*cfg.DATASETS.TEST[:1], *cfg.DATASETS.TRAIN[:1])
            if (names := _known_classes(name))
        ]
        if trained and tuple(trained) not in [_known_classes(name) for name in cfg.DATASETS.TRAIN[:1]]:
            choices.insert(0, (tuple(trained), [int(name in seen) for name in trained]))
        for names, flags in choices:
            if self._adapters:
                self._use(names, flags)
            elif len(names) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
                self.class_names = names
            if self.class_names:
                break
        if not self._adapters and not self.class_names:
            self.class_names = tuple(f"class {number}" for number in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES))

    def __repr__(self) -> str:
        return f"Segmenter({self.cfg.MODEL.META_ARCHITECTURE}, {len(self.class_names)} classes, {self.device})"

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
        seen: Sequence[str] | None = None,
    ) -> "Segmenter":
        """Look for other classes from now on. Returns the segmenter itself.

        Args:
            classes: names; a vocabulary or what :func:`~prompt_pretrain.vocabulary.load_vocabulary` takes (a registered
                name such as "ade20k_150", a .txt or .json file, a comma list); class embeddings or a file of them
                (.npy, .safetensors), which then need no encoding; or groups of names, whose scores are joined.
            prompt: a prompt, its file, or a template. Default: the model's own; another one than that costs accuracy.
            clip: the CLIP that encodes names with ``prompt``, or its name. Default: the model's own.
            names: class names of an embedding file without any, or a vocabulary's name.
            seen: those of the classes that the model was trained on: there it trusts its queries more than CLIP's look
                at the crops. Default: those that are classes of its training set too.
        Raises:
            InputError: a model with a learned classifier, no, empty or repeated names, embeddings of another width than
                CLIP's, a ``seen`` name that is no class.
        """
        if not self._adapters:
            raise InputError(
                "this model has a learned classifier, its classes are fixed; set_classes needs a config with "
                "MODEL.META_ARCHITECTURE ZeroShotMaskFormer"
            )
        if isinstance(classes, ClassGroups):
            self.set_classes(classes.names, prompt=prompt, clip=clip, seen=seen)
            self._groups, self.class_names = classes, classes.class_names
            return self
        if is_embedding_file(classes):
            classes = ClassEmbeddings.load(classes)
        if not isinstance(classes, ClassEmbeddings) and (prompt is not None or clip is not None):
            if prompt is None:
                raise InputError("a clip alone says nothing of the text around class names; give a prompt with it")
            classes = embed_classes(
                classes,
                prompt,
                clip or self._adapters[0].clip,
                cache_dir=self.cfg.MODEL.CLASS_EMBEDDINGS.CACHE_DIR,
                device=self.device,
            )
        if isinstance(classes, ClassEmbeddings):
            self._give(embed_names(classes, names) if names is not None else classes, seen)
            return self
        if names is not None:
            raise InputError("names belong to class embeddings without any; give the names alone")
        found = _names_of(classes)
        flags = self._flags(found, seen)
        self._use(found, flags)
        for adapter in self._adapters:
            adapter.forget_text_features()
        return self

    def predict(
        self, inputs: Any, *, batch_size: int = 4, skip_bad: bool = False
    ) -> SegmentationResult | list[SegmentationResult]:
        """Segment one image, or many.

        Args:
            inputs: see :func:`~prompt_pretrain.image_inputs.open_inputs`.
            batch_size: images per step of the model. Only images that need the same padding share a step, so results
                do not depend on it.
            skip_bad: leave out images that cannot be used, with a warning, instead of raising.
        Returns:
            The result of one image for an array, ``PIL.Image`` or image file; a list for a list, folder or video.
        Raises:
            InputError: no classes set, bad inputs.
        """
        stream = open_inputs(inputs)
        skip_bad = skip_bad and not stream.single
        results = list(self.results(stream.images, batch_size=batch_size, skip_bad=skip_bad))
        return results[0] if stream.single else results

    def stream(self, inputs: Any, *, batch_size: int = 4, skip_bad: bool = False) -> Iterator[SegmentationResult]:
        """Like :meth:`predict`, one result after the other in the order of the inputs: for more than memory holds."""
        return self.results(open_inputs(inputs).images, batch_size=batch_size, skip_bad=skip_bad)

    def prepare(self, image: ImageInput, index: int) -> dict[str, Any]:
        """The model's input for one image, still on the CPU."""
        pixels = image.pixels[:, :, ::-1] if self._rgb else image.pixels
        height, width = pixels.shape[:2]
        resized = T.AugInput(pixels)
        self._resize(resized)
        tensor = torch.as_tensor(resized.image.transpose(2, 0, 1).copy())
        return {"image": tensor, "height": height, "width": width, "source": image.source, "index": index}

    def padded_size(self, image: Tensor) -> tuple[int, int]:
        """Height and width to which the model pads an image."""
        own = getattr(self.model, "size_divisibility", 0)
        return padded_size(image, own or self.model.backbone.size_divisibility)

    @torch.no_grad()
    def run(self, entries: Sequence[dict[str, Any]]) -> list[SegmentationResult]:
        """One result per entry of a batch."""
        inputs = [{**entry, "image": entry["image"].to(self.device)} for entry in entries]
        return [
            SegmentationResult(
                argmax_over_classes(self._class_scores(output["sem_seg"])).cpu(),
                self.class_names,
                str(entry["source"]),
                int(entry["index"]),
            )
            for output, entry in zip(self.model(inputs), entries, strict=True)
        ]

    def _class_scores(self, scores: Tensor) -> Tensor:
        """(C, H, W) scores of classes from those of names."""
        return scores if self._groups is None else self._groups.aggregate(scores)

    def _give(self, embeddings: ClassEmbeddings, seen: Sequence[str] | None) -> None:
        """Use ready embeddings for queries and crops."""
        names = embeddings.class_names or tuple(f"class {number}" for number in range(len(embeddings)))
        for adapter in self._adapters:
            embeddings.check(clip=adapter.clip)
        flags = self._flags(names, seen)
        self._use(names, flags)
        for adapter in self._adapters:
            adapter.forget_text_features()
            adapter.set_text_features(names, embeddings.embeddings.to(adapter.clip.device))

    def _use(self, names: Sequence[str], flags: Sequence[int]) -> None:
        self.model.vocabulary.set(names, flags)
        self._groups = None
        self.class_names = tuple(names)

    def _flags(self, names: Sequence[str], seen: Sequence[str] | None) -> list[int]:
        if seen is None:
            return [int(_folded(name) in self._trained) for name in names]
        unknown = [name for name in seen if name not in names]
        if unknown:
            raise InputError(f"seen class {unknown[0]!r} is not among the {len(names)} classes; give a part of them")
        return [int(name in set(seen)) for name in names]


def _names_of(classes: Sequence[str] | Vocabulary | str | os.PathLike) -> tuple[str, ...]:
    if isinstance(classes, str | os.PathLike):
        classes = load_vocabulary(classes)
    if isinstance(classes, Vocabulary):
        return classes.class_names
    return check_class_names(classes, "the list of classes")


def _seen_names(cfg: CfgNode) -> frozenset[str]:
    """Classes that the model was trained on, as far as the config tells."""
    return frozenset(
        _folded(name)
        for data_set in cfg.DATASETS.TRAIN[:1]
        if _known_classes(data_set)
        for name, flag in zip(classes_of(data_set), seen_flags_of(data_set), strict=True)
        if flag
    )


def _known_classes(data_set: str) -> tuple[str, ...]:
    """Class names of a data set; none where they are not registered, or in a file that is not there."""
    try:
        return classes_of(data_set)
    except InputError:
        return ()


def _folded(name: str) -> str:
    return clean_class_name(name).strip().lower()


def _read_config(config_or_name: CfgNode | str | os.PathLike, overrides: Sequence[Any]) -> CfgNode:
    if isinstance(config_or_name, CfgNode):
        cfg = config_or_name.clone()
        cfg.defrost()
        cfg.merge_from_list(list(overrides))
        return cfg
    return load_config(find_config_file(config_or_name, CONFIG_FOLDER), [str(each) for each in overrides])
