"""Number of training images of each LVIS v1 category."""

from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

LVIS_CATEGORY_IMAGE_COUNT = [{"id": row["id"], "image_count": row["image_count"]} for row in LVIS_CATEGORIES]
