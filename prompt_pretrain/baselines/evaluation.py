"""Classification by a learner, with the metrics of every other evaluation."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from prompt_pretrain.baselines.learners import Learner
from prompt_pretrain.classification.evaluation import Evaluation, evaluate
from prompt_pretrain.classification.metrics import TOP_K, ClassificationMetrics, top_classes
from prompt_pretrain.errors import InputError
from prompt_pretrain.feature_source import Autocast


@torch.no_grad()
def evaluate_learner(
    learner: Learner,
    class_names: Sequence[str],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    autocast: Autocast,
    name: str = "",
    groups: Mapping[str, Sequence[int]] | None = None,
    num_images: int | None = None,
) -> Evaluation:
    """Classify inputs (images or features, as the learner takes them) among ``class_names``.

    Where all images share class features this is :func:`~prompt_pretrain.classification.evaluation.evaluate`; else
    classes are ranked by logits, lowest index first among equal ones, and there is no alignment.

    Args:
        batches: inputs and labels; with several processes each gives its share.
        groups, num_images: as there.
    Raises:
        InputError: the learner does not serve these classes, or there is no image.
    """
    with autocast():
        classes = learner.prepare(class_names)
        features = learner.class_features(classes)
    device = learner.clip.device

    def encoded() -> Iterable[tuple[Tensor, Tensor]]:
        for inputs, labels in batches:
            with autocast():
                yield learner.image_features(inputs.to(device)).float(), labels

    if features is not None:
        return evaluate(features, encoded(), name=name, class_names=class_names, groups=groups, num_images=num_images)
    members = {group: torch.unique(torch.tensor(list(ids))) for group, ids in (groups or {}).items()}
    everything = torch.arange(len(class_names))
    collected = {group: ClassificationMetrics(len(class_names)) for group in (None, *members)}
    for inputs, labels in batches:
        with autocast():
            logits = learner.logits(inputs.to(device), classes, None).float().cpu()
        for group, ids in [(None, everything), *members.items()]:
            collected[group].update(ids[top_classes(logits[:, ids], TOP_K)[1]], labels)
    if num_images is not None:
        for metrics in collected.values():
            metrics.gather(num_images)
    overall = collected[None]
    if not len(overall.labels):
        raise InputError("no image to evaluate: the chosen split is empty; choose another one or another data set")
    return Evaluation(
        name=name,
        num_images=len(overall.labels),
        num_classes=len(class_names),
        metrics=overall.compute(),
        per_class=tuple(overall.per_class()),
        groups={
            group: collected[group].restricted(ids.numpy()).compute()
            | {"accuracy_all_classes": overall.restricted(ids.numpy()).compute()["accuracy"]}
            for group, ids in members.items()
        },
        ranked=overall.ranked,
        labels=overall.labels,
    )
