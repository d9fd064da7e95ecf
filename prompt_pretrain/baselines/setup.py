"""From a configuration to a trained baseline, with the data, features, checks and files of POMP's pre-training."""

from typing import Any

import torch
from fvcore.common.config import CfgNode

from prompt_pretrain import distributed
from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.baselines.config import BASELINES
from prompt_pretrain.baselines.evaluation import evaluate_learner
from prompt_pretrain.baselines.files import LEARNERS, load_learner
from prompt_pretrain.baselines.learners import Learner
from prompt_pretrain.baselines.learning import LearnerLoss, LearnerTrainer
from prompt_pretrain.classification.items import ClassificationData
from prompt_pretrain.clip import Clip
from prompt_pretrain.config import parse_bytes
from prompt_pretrain.errors import InputError
from prompt_pretrain.pretrain import Progress
from prompt_pretrain.pretraining_setup import (
    ImageFeatures,
    PretrainReport,
    TowerAutocast,
    autocast_dtype,
    configured_clip,
    hierarchy_of,
    load_training_data,
    names_hash,
    precision,
    pretrain_prompt,
    results_json,
    run_settings,
    saved_state,
    select_device,
    selection_items,
    starts_anew,
    version_of,
    write_config,
)
from prompt_pretrain.process_watch import watched_evaluation
from prompt_pretrain.run_folder import RunFolder, opened_run


def train(cfg: CfgNode, *, config_name: str = "custom", progress: Progress | None = None) -> PretrainReport:
    """Train what TRAINER.NAME names, or the rest of it if it was interrupted.

    POMP and CoOp learn a prompt and share :func:`~prompt_pretrain.pretraining_setup.pretrain_prompt`, which see; the
    other baselines write models for :func:`~prompt_pretrain.baselines.files.load_learner` in the same places.

    Raises:
        InputError: anything about the configuration, data, CLIP or an earlier state that cannot be used.
        TrainingInterrupted: SIGINT or SIGTERM came; the run can be continued.
    """
    if cfg.TRAINER.NAME not in LEARNERS:
        return pretrain_prompt(as_prompt_training(cfg), config_name=config_name, progress=progress)
    device = select_device(cfg)
    with opened_run(cfg, config_name) as run:
        return _run(cfg, run, device, progress)


def as_prompt_training(cfg: CfgNode) -> CfgNode:
    """``cfg`` with CoOp's settings where POMP keeps its own: the softmax over all classes; POMP's stays as it is."""
    if cfg.TRAINER.NAME != "CoOp":
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    coop, pomp = cfg.TRAINER.COOP, cfg.TRAINER.POMP
    pomp.EPT = False
    pomp.UPDATE_CLASS_NUM = "all"
    for key in ("N_CTX", "CSC", "CTX_INIT", "CLASS_TOKEN_POSITION", "PREC"):
        pomp[key] = coop[key]
    cfg.freeze()
    return cfg


def learner_arguments(cfg: CfgNode, num_classes: int) -> dict[str, Any]:
    """Arguments of the learner's class, apart from the CLIP."""
    trainer = cfg.TRAINER
    node = trainer[BASELINES[trainer.NAME]]
    own: dict[str, dict[str, Any]] = {
        "CoCoOp": {"n_ctx": "N_CTX", "words": "CTX_INIT"},
        "VPT": {"n_ctx": "N_CTX_VISION", "depth": "PROMPT_DEPTH_VISION", "words": "CTX_INIT"},
        "MaPLe": {"n_ctx": "N_CTX", "depth": "PROMPT_DEPTH", "words": "CTX_INIT"},
        "LASP": {
            "n_ctx": "N_CTX",
            "words": "CTX_INIT",
            "groups": "GROUPS",
            "text_weight": "TEXT_WEIGHT",
            "templates": "TEMPLATES",
        },
        "LinearProbe": {},
        "RPL": {"n_ctx": "N_CTX"},
    }
    found = {name: node[key] for name, key in own[trainer.NAME].items()}
    if trainer.NAME == "LinearProbe":
        found["num_classes"] = num_classes
    if trainer.NAME == "RPL":
        found["words"] = [node.CTX1_INIT, node.CTX2_INIT]
    return {**found, "seed": cfg.SEED}


def _run(cfg: CfgNode, run: RunFolder, device: torch.device, progress: Progress | None) -> PretrainReport:
    if cfg.MODEL.INIT_WEIGHTS:
        raise InputError(
            f"MODEL.INIT_WEIGHTS holds a prompt, which {cfg.TRAINER.NAME} does not start from; leave it empty"
        )
    if cfg.OPTIM.ACCUMULATION_STEPS != 1:
        raise InputError(
            f"OPTIM.ACCUMULATION_STEPS is {cfg.OPTIM.ACCUMULATION_STEPS}, but {cfg.TRAINER.NAME} takes a step at once; "
            "set it to 1 and lower DATALOADER.TRAIN_X.BATCH_SIZE"
        )
    data = load_training_data(cfg)
    clip = configured_clip(cfg, device)
    arguments = learner_arguments(cfg, data.num_classes)
    learner = LEARNERS[cfg.TRAINER.NAME](clip, **arguments).to(device)
    learner.memory_budget = parse_bytes(cfg.MEMORY_BUDGET)
    hierarchy = hierarchy_of(cfg, data)
    autocast = TowerAutocast(device, autocast_dtype(precision(cfg), device))
    settings = run_settings(cfg, clip, data)
    state = saved_state(cfg, run, settings)
    features = ImageFeatures(cfg, clip, autocast, show_progress=progress is not None)
    read = features.evaluation_images if learner.takes_images else features.evaluation
    chosen_on = selection_items(cfg, data)
    chooser = None if chosen_on is None else read(*chosen_on)

    def evaluated(candidate: Learner, images: Any) -> Any:
        return evaluate_learner(
            candidate, data.class_names, images.batches(), autocast=autocast, num_images=images.num_images
        )

    names = data.class_names if hierarchy is None else data.class_names + hierarchy.extra_names
    with autocast():
        classes = learner.prepare(names)
    trainer = LearnerTrainer(
        cfg,
        learner,
        LearnerLoss(learner, classes, hierarchy),
        features.training(data.train, images=learner.takes_images),
        run,
        accuracy=None if chooser is None else lambda candidate: evaluated(candidate, chooser).accuracy,
        settings=settings,
        autocast=autocast,
        grad_scaling=autocast.dtype == torch.float16,
        progress=progress,
        metadata=_metadata(cfg, clip, data, arguments),
    )
    if distributed.is_main_process():
        if starts_anew(cfg):
            run.remove_run()
        write_config(cfg, run)
    result = trainer.train(state)
    tests = {}
    if not cfg.TEST.NO_TEST:
        with watched_evaluation(trainer.step, trainer.watch.advice):
            images = read(getattr(data, cfg.TEST.SPLIT), "raise")
            for name, path in (("best", result.best_prompt), ("last", result.last_prompt)):
                tests[name] = evaluated(load_learner(path, clip), images)
    report = PretrainReport(result, run.root, cfg.TEST.SELECTION, cfg.TEST.SPLIT, tests)
    if distributed.is_main_process():
        write_json(run.root / "results.json", results_json(report, trainer.history))
    return report


def _metadata(cfg: CfgNode, clip: Clip, data: ClassificationData, arguments: dict[str, Any]) -> dict[str, Any]:
    """Plain values that tell how a model came about and how to build it again."""
    return {
        "trainer": cfg.TRAINER.NAME,
        "arguments": arguments,
        "clip_id": clip.clip_id,
        "text_tower": clip.text_fingerprint,
        "image_tower": clip.image_fingerprint,
        "dataset": data.name,
        "num_classes": data.num_classes,
        "class_names_hash": names_hash(data.class_names),
        "num_shots": cfg.DATASET.NUM_SHOTS,
        "max_epoch": cfg.OPTIM.MAX_EPOCH,
        "seed": cfg.SEED,
        "selection": cfg.TEST.SELECTION,
        "version": version_of("openvocab-prompt"),
    }
