"""The compiled COCO evaluator under detectron2's name for it."""

from typing import Any

from faster_coco_eval import COCO, COCOeval_faster

__all__ = ["COCOeval_opt"]


class COCOeval_opt(COCOeval_faster):  # noqa: N801  the published name
    """pycocotools' ``COCOeval`` with the work done in C++; takes pycocotools' ``COCO`` objects as well."""

    def __init__(self, cocoGt: Any = None, cocoDt: Any = None, iouType: str = "segm") -> None:  # noqa: N803
        super().__init__(_indexed(cocoGt), _indexed(cocoDt), iouType, print_function=print)


def _indexed(api: Any) -> COCO | None:
    return api if api is None or isinstance(api, COCO) else COCO(api.dataset)
