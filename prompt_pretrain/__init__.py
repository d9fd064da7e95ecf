"""Prompt pre-training on large vocabularies: from class names to frozen class embeddings (POMP, arXiv 2304.04704)."""

__version__ = "0.1.0"
