"""Writing and reading checkpoints, our own and those of others."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from detectron2.checkpoint.detection_checkpoint import DetectionCheckpointer

__all__ = ["Checkpointer", "DetectionCheckpointer", "PeriodicCheckpointer"]
