"""Mappers, chosen by ``INPUT.DATASET_MAPPER_NAME``."""
