"""What the ``prepare_*.py`` commands of this folder share."""
