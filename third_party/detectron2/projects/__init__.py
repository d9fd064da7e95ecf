"""Parts of detectron2's projects that the suite uses, under the names `detectron2.projects.*`."""
