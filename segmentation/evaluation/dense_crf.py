"""Dense CRF post-processing of score maps (``TEST.DENSE_CRF``), through the optional package pydensecrf."""

import importlib.util

import numpy as np
import torch
from torch import Tensor

from prompt_pretrain.errors import InputError

__all__ = ["dense_crf"]

_ITERATIONS = 5


def dense_crf(scores: Tensor, *, image: np.ndarray) -> Tensor:
    """(C, H, W) class probabilities of a fully connected CRF with Gaussian edge potentials (Krähenbühl, Koltun 2011).

    Args:
        scores: (C, H, W); the unary potentials are those of their softmax over classes.
        image: (H, W, 3) uint8 RGB.
    Raises:
        InputError: pydensecrf is not installed.
    """
    if importlib.util.find_spec("pydensecrf") is None:
        raise InputError("TEST.DENSE_CRF needs the package pydensecrf; install it or set TEST.DENSE_CRF False")
    from pydensecrf import densecrf
    from pydensecrf.utils import unary_from_softmax

    classes, height, width = scores.shape
    probabilities = scores.float().softmax(0).cpu().numpy()
    model = densecrf.DenseCRF2D(width, height, classes)
    model.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities)))
    options = {"kernel": densecrf.DIAG_KERNEL, "normalization": densecrf.NORMALIZE_SYMMETRIC}
    model.addPairwiseGaussian(sxy=3, compat=3, **options)
    model.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(image), compat=10, **options)
    refined = np.array(model.inference(_ITERATIONS), dtype=np.float32).reshape(classes, height, width)
    return torch.from_numpy(refined).to(scores.device)
