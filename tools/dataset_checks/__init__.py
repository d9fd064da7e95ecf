"""What ``tools/check_dataset.py`` looks for; works on the bundled and on the real detectron2 alike."""
