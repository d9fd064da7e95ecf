"""Parts of ``tools/soak.py``: the trainings, what disturbs them, and watching them."""
