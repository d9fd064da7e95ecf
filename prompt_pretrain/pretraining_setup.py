"""From a configuration to a finished prompt: data, CLIP, features, loss and loop put together and checked."""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode

from prompt_pretrain import distributed
from prompt_pretrain.atomic_files import atomic_writer, write_json
from prompt_pretrain.baselines.config import BASELINES
from prompt_pretrain.checkpoints import check_settings
from prompt_pretrain.class_sampling import ClassSampler
from prompt_pretrain.classification.evaluation import Evaluation, evaluate
from prompt_pretrain.classification.images import ImageDataset
from prompt_pretrain.classification.items import ClassificationData, ImageItem, labels_of
from prompt_pretrain.classification.registry import load_classification_data
from prompt_pretrain.classification.transforms import ImageTransform, eval_transform, train_transform
from prompt_pretrain.clip import Clip, load_clip
from prompt_pretrain.config import flatten, parse_bytes
from prompt_pretrain.errors import InputError
from prompt_pretrain.feature_cache import FeatureCache
from prompt_pretrain.feature_source import (
    CachedFeatures,
    EvaluationFeatures,
    EvaluationImages,
    FeatureSource,
    OnlineFeatures,
    OnlineImages,
)
from prompt_pretrain.label_hierarchy import LabelHierarchy, read_hierarchy
from prompt_pretrain.local_contrast import local_correction
from prompt_pretrain.pretrain import PretrainResult, Progress, PromptPretrainer
from prompt_pretrain.process_watch import watched_evaluation
from prompt_pretrain.prompt import SoftPrompt, load_prompt
from prompt_pretrain.prompt_loss import PromptLoss
from prompt_pretrain.prompt_tokens import PromptTokens, tokenize_prompts
from prompt_pretrain.run_folder import RunFolder, opened_run
from prompt_pretrain.text_encoder import TextEncoder, encode_templates

logger = logging.getLogger(__name__)

_LOGGED_PACKAGES = ("torch", "torchvision", "open_clip_torch")
_PROPOSAL_TEMPLATE = "a photo of a {}."
# Settings that may change between two parts of one run: places, speed and reporting, not results.
_FREE_SETTINGS = (
    "VERSION",
    "OUTPUT_DIR",
    "RESUME",
    "DEVICE",
    "USE_CUDA",
    "VERBOSE",
    "MEMORY_BUDGET",
    "DATASET.ROOT",
    "DATASET.NAMES_FILE",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.TRAIN_X.BATCH_SIZE",  # the number of images of all processes is compared instead
    "DATALOADER.TRAIN_X.SAMPLER",
    "DATALOADER.TEST.BATCH_SIZE",
    "DATALOADER.TEST.SAMPLER",
    "OPTIM.ACCUMULATION_STEPS",
    "OPTIM.REFERENCE_WORLD_SIZE",  # what it does to the learning rate is compared
    "FEATURE_CACHE.FOLDER",
    "FEATURE_CACHE.BATCH_SIZE",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TRAIN.CHECKPOINT_STEPS",
    "TRAIN.COUNT_ITER",
    "TRAIN.TENSORBOARD",
    "TEST.NO_TEST",
    "TEST.PER_CLASS_RESULT",
    "TEST.FINAL_MODEL",
    "TEST.SPLIT",
    "TEST.EVALUATOR",
    "TEST.COMPUTE_CMAT",
    "MODEL.BACKBONE.NAME",  # the weights themselves are compared
    "MODEL.BACKBONE.WEIGHTS",
)


@dataclass(frozen=True)
class PretrainReport:
    """A finished run and what its prompts achieve; percentages.

    ``selection``: how the best epoch was chosen. ``tests``: evaluations of ``best`` and ``last`` on ``split``, empty
    with TEST.NO_TEST.
    """

    result: PretrainResult
    folder: Path
    selection: str
    split: str
    tests: dict[str, Evaluation]


def pretrain_prompt(cfg: CfgNode, *, config_name: str = "custom", progress: Progress | None = None) -> PretrainReport:
    """Run the pre-training that ``cfg`` describes, or the rest of it if it was interrupted.

    In a distributed run every process calls this. Inputs are checked before anything large is loaded.

    Args:
        cfg: of :func:`~prompt_pretrain.config.load_cfg`.
        config_name: names the run's folder where OUTPUT_DIR is empty.
        progress: called after each step with the steps done, all steps and a text.
    Raises:
        InputError: anything about the configuration, data, CLIP, prompt or an earlier state that cannot be used.
        TrainingInterrupted: SIGINT or SIGTERM came; the run can be continued.
    """
    device = select_device(cfg)
    with opened_run(cfg, config_name) as run:
        return _run(cfg, run, device, progress)


def select_device(cfg: CfgNode) -> torch.device:
    """The device of this process by DEVICE and USE_CUDA; joins the process group of a distributed run.

    Raises:
        InputError: CUDA is asked for and not there.
    """
    wanted = "cpu" if not cfg.USE_CUDA else cfg.DEVICE
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("DEVICE is cuda but no CUDA device is available; set DEVICE to cpu or auto")
    return distributed.initialize(wanted)


def sampled_classes(cfg: CfgNode, num_classes: int) -> int | None:
    """K, or None for the exact softmax over all ``num_classes``.

    Raises:
        InputError: K is larger than the number of classes.
    """
    pomp = cfg.TRAINER.POMP
    number = pomp.UPDATE_CLASS_NUM
    if not pomp.EPT or number in ("all", 0, num_classes):
        return None
    if number > num_classes:
        raise InputError(
            f"TRAINER.POMP.UPDATE_CLASS_NUM is {number} but {cfg.DATASET.NAME} has {num_classes} classes; "
            f'set it to 3..{num_classes}, or to "all" for the softmax over all of them'
        )
    return number


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Type of the towers' linear layers for TRAINER.POMP.PREC; None for float32."""
    if precision == "amp":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]


def precision(cfg: CfgNode) -> str:
    """PREC of the trainer that ``cfg`` names."""
    return cfg.TRAINER[BASELINES.get(cfg.TRAINER.NAME, cfg.TRAINER.NAME)].PREC


def load_training_data(cfg: CfgNode) -> ClassificationData:
    """The data set of ``cfg``; ``held_out`` holds the images that choose the epoch if TEST.SELECTION asks for some."""

    def load(held_out: int) -> ClassificationData:
        return load_classification_data(
            cfg.DATASET.NAME,
            cfg.DATASET.ROOT,
            num_shots=cfg.DATASET.NUM_SHOTS,
            seed=cfg.SEED,
            subsample_classes=cfg.DATASET.SUBSAMPLE_CLASSES,
            names_file=cfg.DATASET.NAMES_FILE or None,
            held_out=held_out,
        )

    if not cfg.DATASET.NAME:
        raise InputError("DATASET.NAME is empty; give --config-file, or DATASET.NAME such as ImageNet21K")
    data = load(0)
    # The ImageNet sets use their test images for validation: choosing by them would be choosing on the test set.
    if cfg.TEST.SELECTION == "held_out" and not _has_own_validation(data):
        if cfg.DATASET.HELD_OUT_SHOTS == 0:
            raise InputError(
                f"{cfg.DATASET.NAME} has no validation images apart from its test images and DATASET.HELD_OUT_SHOTS is "
                "0; raise it, or set TEST.SELECTION to last"
            )
        data = load(cfg.DATASET.HELD_OUT_SHOTS)
    return data


def hierarchy_of(cfg: CfgNode, data: ClassificationData) -> LabelHierarchy | None:
    """The class tree as TRAINER.HIERARCHY asks for it.

    Raises:
        InputError: no tree beside the data, or extra classes for a prompt that has one context per class.
    """
    asked = cfg.TRAINER.HIERARCHY
    hierarchy = read_hierarchy(data, asked.MODE, weight=asked.WEIGHT, levels=asked.LEVELS)
    if hierarchy is not None and hierarchy.extra_names and (cfg.TRAINER.POMP.CSC or cfg.TRAINER.NAME == "LinearProbe"):
        raise InputError(
            f"TRAINER.HIERARCHY.MODE positives adds {len(hierarchy.extra_names)} parents to the classes, for which a "
            "linear probe and class-specific contexts have no place; use MODE smooth or another trainer"
        )
    return hierarchy


def initial_prompt(cfg: CfgNode, clip: Clip, num_classes: int) -> SoftPrompt:
    """The prompt that training starts from: MODEL.INIT_WEIGHTS, CTX_INIT's words, or random vectors.

    Raises:
        InputError: the file's prompt is made for another CLIP or has another shape or position.
    """
    pomp = cfg.TRAINER.POMP
    position = pomp.CLASS_TOKEN_POSITION
    count = num_classes if pomp.CSC else None
    if cfg.MODEL.INIT_WEIGHTS:
        path = cfg.MODEL.INIT_WEIGHTS
        prompt = load_prompt(path, width=clip.text_width, n_ctx=_n_ctx(cfg))
        if (prompt.num_classes, prompt.position) != (count, position):
            raise InputError(
                f"MODEL.INIT_WEIGHTS {path} holds contexts for {prompt.num_classes or 'all'} classes, name at "
                f"{prompt.position!r}; this run needs {count or 'all'}, name at {position!r}: change "
                "TRAINER.POMP.CSC or CLASS_TOKEN_POSITION, or give another file"
            )
        return SoftPrompt(prompt.ctx.detach(), position)
    if pomp.CTX_INIT:
        return SoftPrompt.from_words(pomp.CTX_INIT, clip, position, num_classes=count)
    return SoftPrompt.random(pomp.N_CTX, clip.text_width, num_classes=count, position=position, seed=cfg.SEED)


def _run(cfg: CfgNode, run: RunFolder, device: torch.device, progress: Progress | None) -> PretrainReport:
    if cfg.MODEL.INIT_WEIGHTS:
        load_prompt(cfg.MODEL.INIT_WEIGHTS, n_ctx=_n_ctx(cfg))  # a wrong file should not wait for the CLIP
    data = load_training_data(cfg)
    num_sampled = sampled_classes(cfg, data.num_classes)
    clip = configured_clip(cfg, device)
    hierarchy = hierarchy_of(cfg, data)
    if hierarchy is not None and num_sampled is not None:
        raise InputError(
            f"TRAINER.HIERARCHY.MODE {cfg.TRAINER.HIERARCHY.MODE} needs the softmax over all classes; set "
            "TRAINER.POMP.UPDATE_CLASS_NUM to all"
        )
    prompts = _tokenize(cfg, clip, data.class_names)
    prompt = initial_prompt(cfg, clip, data.num_classes).to(device)
    settings = run_settings(cfg, clip, data)
    state = saved_state(cfg, run, settings)
    autocast = TowerAutocast(device, autocast_dtype(precision(cfg), device))
    encoder = TextEncoder(clip)
    margin = _margin(cfg)
    prompt.metadata.update(run_metadata(cfg, clip, data, num_sampled, margin))
    features = ImageFeatures(cfg, clip, autocast, show_progress=progress is not None)
    classify = _Classifier(encoder, prompts, data.class_names, autocast)
    chosen_on = selection_items(cfg, data)
    chooser = None if chosen_on is None else features.evaluation(*chosen_on)
    trainer = PromptPretrainer(
        cfg,
        prompt,
        PromptLoss(
            encoder,
            prompts if hierarchy is None else _tokenize(cfg, clip, data.class_names + hierarchy.extra_names),
            _sampler(cfg, clip, data, num_sampled),
            logit_scale=clip.logit_scale,
            margin=margin,
            negatives=cfg.TRAINER.POMP.NEGATIVES,
            memory_budget=parse_bytes(cfg.MEMORY_BUDGET),
            hierarchy=hierarchy,
        ),
        features.training(data.train),
        run,
        accuracy=None if chooser is None else lambda candidate: classify(candidate, chooser).accuracy,
        settings=settings,
        autocast=autocast,
        grad_scaling=autocast.dtype == torch.float16,
        margin=_nominal_margin(num_sampled, data.num_classes, margin),
        progress=progress,
    )
    if distributed.is_main_process():
        if starts_anew(cfg):
            run.remove_run()
        write_config(cfg, run)
    result = trainer.train(state)
    tests = {}
    if not cfg.TEST.NO_TEST:
        with watched_evaluation(trainer.step, trainer.watch.advice):
            images = features.evaluation(getattr(data, cfg.TEST.SPLIT), "raise")
            for name, path in (("best", result.best_prompt), ("last", result.last_prompt)):
                kept = distributed.broadcast_object(load_prompt(path) if distributed.is_main_process() else None)
                tests[name] = classify(kept.to(device), images)  # type: ignore[attr-defined]
    report = PretrainReport(result, run.root, cfg.TEST.SELECTION, cfg.TEST.SPLIT, tests)
    if distributed.is_main_process():
        write_json(run.root / "results.json", results_json(report, trainer.history))
    return report


def _tokenize(cfg: CfgNode, clip: Clip, class_names: Sequence[str]) -> PromptTokens:
    pomp = cfg.TRAINER.POMP
    return tokenize_prompts(
        class_names,
        clip.tokenizer,
        _n_ctx(cfg),
        pomp.CLASS_TOKEN_POSITION,
        context_length=clip.context_length,
        ctx_words=pomp.CTX_INIT,
    )


class TowerAutocast:
    """Makes the context that both towers run in."""

    def __init__(self, device: torch.device, dtype: torch.dtype | None) -> None:
        self.device, self.dtype = device, dtype

    def __call__(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)


class _Classifier:
    """Evaluates a prompt on images, over all classes."""

    def __init__(
        self, encoder: TextEncoder, prompts: PromptTokens, class_names: Sequence[str], autocast: TowerAutocast
    ) -> None:
        self.encoder, self.prompts, self.class_names, self.autocast = encoder, prompts, class_names, autocast

    def __call__(self, prompt: SoftPrompt, images: EvaluationFeatures) -> Evaluation:
        with torch.no_grad(), self.autocast():
            shard = len(self.prompts) >= distributed.world_size()
            features = self.encoder(self.prompts, prompt.ctx, shard=shard)
        return evaluate(features, images.batches(), class_names=self.class_names, num_images=images.num_images)


class ImageFeatures:
    """Image features for every purpose, cached or computed as the configuration says."""

    def __init__(self, cfg: CfgNode, clip: Clip, autocast: TowerAutocast, *, show_progress: bool) -> None:
        self.cfg, self.clip, self.autocast, self.show_progress = cfg, clip, autocast, show_progress
        self.size = cfg.INPUT.SIZE[0]
        if self.size != clip.image_size:
            raise InputError(
                f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)} but {clip.clip_id} takes {clip.image_size} pixels; "
                f"set INPUT.SIZE to ({clip.image_size}, {clip.image_size})"
            )

    def training(self, items: Sequence[ImageItem], *, images: bool = False) -> FeatureSource:
        """Training features, or with ``images`` the augmented images themselves."""
        cfg = self.cfg
        used = cfg.INPUT
        transform = train_transform(
            used.TRANSFORMS,
            self.size,
            used.PIXEL_MEAN,
            used.PIXEL_STD,
            used.RANDAUGMENT_N,
            used.INTERPOLATION,
            used.CROP_SCALE,
        )
        views = cfg.DATALOADER.K_TRANSFORMS
        if images or not cfg.FEATURE_CACHE.ENABLED:
            dataset = ImageDataset(items, transform, views=views, seed=cfg.SEED)
            return (OnlineImages if images else OnlineFeatures)(
                self.clip,
                dataset,
                num_workers=cfg.DATALOADER.NUM_WORKERS,
                device=self.clip.device,
                autocast=self.autocast,
                parts=cfg.OPTIM.ACCUMULATION_STEPS,
            )
        stored = max(cfg.FEATURE_CACHE.VIEWS, views) if transform.random else 1
        cache = self._cache(items, transform, views=stored)
        return CachedFeatures(cache.features, cache.labels, cache.valid, views=views, device=self.clip.device)

    def evaluation_images(self, items: Sequence[ImageItem], on_corrupt: str) -> EvaluationImages:
        """Images as the test transform leaves them."""
        return EvaluationImages(
            ImageDataset(items, self._plain_transform(), on_corrupt=on_corrupt),
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            device=self.clip.device,
        )

    def _plain_transform(self) -> ImageTransform:
        used = self.cfg.INPUT
        return eval_transform(self.size, used.PIXEL_MEAN, used.PIXEL_STD, used.INTERPOLATION)

    def evaluation(self, items: Sequence[ImageItem], on_corrupt: str) -> EvaluationFeatures:
        """Features of the images as the test transform leaves them."""
        cfg = self.cfg
        transform = self._plain_transform()
        batch_size = cfg.DATALOADER.TEST.BATCH_SIZE
        if cfg.FEATURE_CACHE.ENABLED:
            cache = self._cache(items, transform, views=1, on_corrupt=on_corrupt)
            return EvaluationFeatures.from_cache(cache.features, cache.labels, cache.valid, batch_size=batch_size)
        return EvaluationFeatures.encode(
            self.clip,
            ImageDataset(items, transform, on_corrupt=on_corrupt),
            batch_size=batch_size,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            autocast=self.autocast,
        )

    def _cache(self, items: Sequence[ImageItem], transform: Any, **options: Any) -> FeatureCache:
        return FeatureCache.build(
            self.clip,
            items,
            transform,
            folder=self.cfg.FEATURE_CACHE.FOLDER or None,
            batch_size=self.cfg.FEATURE_CACHE.BATCH_SIZE,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            seed=self.cfg.SEED,
            progress=self.show_progress,
            **options,
        )


def configured_clip(cfg: CfgNode, device: torch.device) -> Clip:
    """The CLIP of MODEL.BACKBONE, in the precision of the trainer."""
    return load_clip(
        cfg.MODEL.BACKBONE.NAME,
        weights=cfg.MODEL.BACKBONE.WEIGHTS or None,
        device=device,
        precision="fp32" if precision(cfg) == "fp32" else "amp",
    )


def _n_ctx(cfg: CfgNode) -> int:
    return len(cfg.TRAINER.POMP.CTX_INIT.replace("_", " ").split()) or cfg.TRAINER.POMP.N_CTX


def _margin(cfg: CfgNode) -> str | float:
    return cfg.TRAINER.POMP.MARGIN if cfg.TRAINER.POMP.LOCAL_CORRECTION else "none"


def _nominal_margin(num_sampled: int | None, num_classes: int, margin: str | float) -> float:
    """The margin of an image without an accidental hit, under uniform sampling."""
    if num_sampled is None:
        return 0.0
    return float(local_correction(torch.zeros(1, num_sampled - 1, dtype=torch.bool), num_classes, margin))


def _sampler(cfg: CfgNode, clip: Clip, data: ClassificationData, num_sampled: int | None) -> ClassSampler | None:
    pomp = cfg.TRAINER.POMP
    if num_sampled is None:
        if pomp.UPDATE_CLASS_NUM not in ("all", 0, data.num_classes):
            logger.warning(
                "TRAINER.POMP.EPT is False, so every step contrasts all %d classes and UPDATE_CLASS_NUM %s is not used",
                data.num_classes,
                pomp.UPDATE_CLASS_NUM,
            )
        return None
    mode = "uniform" if pomp.NEG_SAMPLING_MODE == "random" else pomp.NEG_SAMPLING_MODE
    class_features = None
    if mode in ("similarity", "easy"):
        class_features = encode_templates(clip, data.class_names, [_PROPOSAL_TEMPLATE])
    return ClassSampler(
        data.num_classes,
        num_sampled,
        mode,
        scope="per_image" if pomp.NEGATIVES == "per_image" else "shared",
        seed=cfg.SEED,
        frequencies=torch.tensor(data.class_counts, dtype=torch.float64),
        class_features=class_features,
        logit_scale=clip.logit_scale,
    )


def _has_own_validation(data: ClassificationData) -> bool:
    if data.val is data.test or not len(data.val):
        return False
    test = {item.path for item in data.test}
    return not any(item.path in test for item in data.val)


def selection_items(cfg: CfgNode, data: ClassificationData) -> tuple[Sequence[ImageItem], str] | None:
    """The images that choose the epoch, and what a damaged one among them does; None to keep the last epoch."""
    if cfg.TEST.SELECTION == "last":
        return None
    if cfg.TEST.SELECTION == "test":
        logger.warning(
            "TEST.SELECTION is test: the best epoch is chosen on the test images, as in the release, so its accuracy "
            "on them is optimistic"
        )
        return data.test, "raise"
    return (data.held_out if len(data.held_out) else data.val), "skip"


def write_config(cfg: CfgNode, run: RunFolder) -> None:
    """Keep the merged configuration, so that ``--config-file`` can repeat the run."""
    merged = cfg.clone()
    merged.defrost()
    merged.OUTPUT_DIR, merged.RESUME = str(run.root), ""
    with atomic_writer(run.root / "config.yaml", "w") as file:
        file.write(merged.dump())
    versions = ", ".join(f"{package} {version_of(package)}" for package in ("openvocab-prompt", *_LOGGED_PACKAGES))
    logger.info("%s; configuration in %s", versions, run.root / "config.yaml")


def saved_state(cfg: CfgNode, run: RunFolder, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The state to continue from, on every process; None to start at the beginning.

    Raises:
        InputError: the state belongs to another configuration, or RESUME names a folder without one.
    """
    if starts_anew(cfg):
        return None
    state: Any = None
    if distributed.is_main_process():
        # What this run reached itself comes before the run that it continues.
        elsewhere = cfg.RESUME if cfg.RESUME != "off" else ""
        origin = run if run.states.exists() or not elsewhere else RunFolder(elsewhere)
        state = origin.states.load()
        if state is None and origin is not run:
            raise InputError(
                f"RESUME {cfg.RESUME} holds no usable checkpoints/state-*.pth; give the OUTPUT_DIR of an earlier run, "
                "or start from a prompt file with MODEL.INIT_WEIGHTS"
            )
        if state is not None:
            check_settings(state["settings"], settings, origin.root)
    return distributed.broadcast_object(state)  # type: ignore[return-value]


def starts_anew(cfg: CfgNode) -> bool:
    """RESUME "off" holds for the first start; processes that torchrun starts again go on."""
    return cfg.RESUME == "off" and not distributed.is_restarted()


def run_settings(cfg: CfgNode, clip: Clip, data: ClassificationData) -> dict[str, Any]:
    """What two parts of one run must have in common, by the name to show when they do not."""
    values = {key: value for key, value in flatten(cfg).items() if key not in _FREE_SETTINGS}
    if not cfg.FEATURE_CACHE.ENABLED:
        del values["FEATURE_CACHE.VIEWS"]
    world = distributed.world_size() * cfg.OPTIM.ACCUMULATION_STEPS
    if cfg.OPTIM.REFERENCE_WORLD_SIZE:
        values["factor on OPTIM.LR (processes over OPTIM.REFERENCE_WORLD_SIZE)"] = (
            world / cfg.OPTIM.REFERENCE_WORLD_SIZE
        )
    values["images per step (DATALOADER.TRAIN_X.BATCH_SIZE times processes)"] = (
        cfg.DATALOADER.TRAIN_X.BATCH_SIZE * world
    )
    if cfg.TRAINER.POMP.NEGATIVES == "per_rank":
        values["number of processes"] = world
    values["CLIP (MODEL.BACKBONE.NAME)"] = f"{clip.clip_id} {clip.text_fingerprint[:12]} {clip.image_fingerprint[:12]}"
    values["class names (DATASET)"] = names_hash(data.class_names)
    values["training images (DATASET)"] = _items_hash(data)
    return values


def names_hash(class_names: Sequence[str]) -> str:
    """16 hexadecimal digits that tell vocabularies apart."""
    return hashlib.sha256("\n".join(class_names).encode()).hexdigest()[:16]


def _items_hash(data: ClassificationData) -> str:
    """Hash of the training images' paths below the data set's folder, and of their labels."""
    digest = hashlib.sha256(np.ascontiguousarray(labels_of(data.train)).tobytes())
    start = len(str(data.root))
    for item in data.train:
        digest.update(item.path[start:].encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def run_metadata(
    cfg: CfgNode, clip: Clip, data: ClassificationData, num_sampled: int | None, margin: str | float
) -> dict[str, Any]:
    """Plain values that tell how a prompt came about."""
    pomp = cfg.TRAINER.POMP
    return {
        "clip_id": clip.clip_id,
        "text_tower": clip.text_fingerprint,
        "dataset": data.name,
        "num_classes": data.num_classes,
        "class_names_hash": names_hash(data.class_names),
        "num_shots": cfg.DATASET.NUM_SHOTS,
        "num_sampled": num_sampled or data.num_classes,
        "margin": margin if num_sampled else "none",
        "sampling": pomp.NEG_SAMPLING_MODE if num_sampled else "all",
        "negatives": pomp.NEGATIVES,
        "max_epoch": cfg.OPTIM.MAX_EPOCH,
        "seed": cfg.SEED,
        "selection": cfg.TEST.SELECTION,
        "version": version_of("openvocab-prompt"),
    }


def version_of(package: str) -> str:
    """Installed version of a package, or ``unknown``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def results_json(report: PretrainReport, history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Plain values of a report, for the run's ``results.json``."""
    result = report.result
    kept = (
        ("best", result.best_epoch, result.best_accuracy, result.best_prompt),
        ("last", result.last_epoch, result.last_accuracy, result.last_prompt),
    )
    return {
        "selection": report.selection,
        **{
            name: {"epoch": epoch, "selection_accuracy": accuracy, "prompt": str(path)}
            for name, epoch, accuracy, path in kept
        },
        "epochs": list(history),
        "tests": {name: {"split": report.split, **test.metrics} for name, test in report.tests.items()},
    }
