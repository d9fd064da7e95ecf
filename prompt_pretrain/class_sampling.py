"""Which classes a training step contrasts its images with (POMP, arXiv 2304.04704, section 3.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_pretrain.errors import InputError

MODES = ("uniform", "frequency", "similarity", "easy")
SCOPES = ("shared", "per_image")


@dataclass(frozen=True)
class NegativeSample:
    """Sampled class ids.

    Attributes:
        ids: (K - 1,) shared by the batch, or (B, K - 1) one list per image; int64.
        log_q: natural logarithm of the proposal probability of every class, (N,) or (B, N); None when uniform.
    """

    ids: Tensor
    log_q: Tensor | None = None


class ClassSampler:
    """Draws the K - 1 negatives of a step; a function of the seed, the step and the rank alone.

    Args:
        num_classes: N.
        num_sampled: K, the positive class included; 3 to N.
        mode: the proposal distribution. ``uniform``: without replacement. ``frequency``: proportional to the training
            images of each class. ``similarity``: softmax of the logits under fixed class features, so that classes
            close to the images come more often; ``easy``: the same with negated logits. All but uniform draw with
            replacement, for which their correction ``-log(n q)`` holds exactly.
        scope: ``shared``: one list for the whole batch, drawn from all N classes, the batch's own included (as
            released). ``per_image``: one list per image among the N - 1 other classes (as the paper writes).
        seed: of the draws.
        frequencies: (N,) training images per class, for ``frequency``.
        class_features: (N, D) text features of a fixed prompt, for ``similarity`` and ``easy``.
        logit_scale: 1 / temperature of those logits.
    Raises:
        InputError: an unknown mode or scope, K out of range, frequencies missing or of another length.
    """

    def __init__(
        self,
        num_classes: int,
        num_sampled: int,
        mode: str = "uniform",
        *,
        scope: str = "shared",
        seed: int = 0,
        frequencies: Tensor | None = None,
        class_features: Tensor | None = None,
        logit_scale: float = 100.0,
    ) -> None:
        if mode not in MODES:
            raise InputError(f"sampling mode is {mode!r}; expected one of {', '.join(MODES)}")
        if scope not in SCOPES:
            raise InputError(f"sampling scope is {scope!r}; expected one of {', '.join(SCOPES)}")
        if not 3 <= num_sampled <= num_classes:
            raise InputError(
                f"{num_sampled} classes per step cannot be sampled from {num_classes}; "
                f"set TRAINER.POMP.UPDATE_CLASS_NUM to 3..{num_classes}, or to 'all' for no sampling"
            )
        self.num_classes, self.num_sampled = num_classes, num_sampled
        self.mode, self.scope, self.seed, self.logit_scale = mode, scope, seed, logit_scale
        if mode == "frequency":
            if frequencies is None or len(frequencies) != num_classes or (frequencies <= 0).all():
                found = "none" if frequencies is None else f"{len(frequencies)}"
                raise InputError(f"frequency sampling needs {num_classes} positive class counts, got {found}")
            self._log_frequency = (frequencies.double() / frequencies.sum()).log()
        if mode in ("similarity", "easy"):
            if class_features is None or len(class_features) != num_classes:
                raise InputError(f"{mode} sampling needs fixed features of the {num_classes} classes")
            self._class_features = F.normalize(class_features.float(), dim=1)

    def draw(
        self, step: int, *, rank: int = 0, labels: Tensor | None = None, image_features: Tensor | None = None
    ) -> NegativeSample:
        """Negatives of one step.

        Args:
            step: counts all steps of a run.
            rank: give the process's rank for lists of its own, 0 everywhere for one list shared by all processes.
            labels: (B,) needed by the scope ``per_image``.
            image_features: (B, D) needed by ``similarity`` and ``easy``.
        """
        generator = torch.Generator().manual_seed(_mix(self.seed, step, rank))
        if self.mode == "uniform":
            return NegativeSample(self._draw_uniform(generator, labels))
        log_q = self._proposal(image_features)
        if self.scope == "per_image":
            assert labels is not None
            log_q = log_q.expand(len(labels), -1).clone()
            log_q[torch.arange(len(labels)), labels.cpu()] = -torch.inf
            log_q = log_q.log_softmax(dim=1)
        ids = torch.multinomial(log_q.exp(), self.num_sampled - 1, replacement=True, generator=generator)
        return NegativeSample(ids, log_q.float())

    def _draw_uniform(self, generator: torch.Generator, labels: Tensor | None) -> Tensor:
        count = self.num_sampled - 1
        if self.scope == "shared":
            return torch.randperm(self.num_classes, generator=generator)[:count]
        assert labels is not None
        ids = torch.stack([torch.randperm(self.num_classes - 1, generator=generator)[:count] for _ in labels])
        return ids + (ids >= labels.cpu().unsqueeze(1))  # skips the image's own class

    def _proposal(self, image_features: Tensor | None) -> Tensor:
        """Log probabilities on the CPU, (N,) or with one row per image (B, N)."""
        if self.mode == "frequency":
            return self._log_frequency
        assert image_features is not None
        images = F.normalize(image_features.float(), dim=1)
        logits = self.logit_scale * images @ self._class_features.to(images.device).T
        if self.scope == "shared":
            logits = logits.mean(dim=0)
        return (logits if self.mode == "similarity" else -logits).double().log_softmax(dim=-1).cpu()


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers, so that neighbouring steps and ranks get unrelated streams."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 % 2**64
        state ^= state >> 31
    return state >> 1
