"""Name only: panoptic evaluation is left to the real detectron2."""

from typing import Any

from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.utils.left_out import needs_real_detectron2


class COCOPanopticEvaluator(DatasetEvaluator):
    """Raises ImportError when it is made: needs the real detectron2 and panopticapi."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise needs_real_detectron2("detectron2.evaluation.COCOPanopticEvaluator")
