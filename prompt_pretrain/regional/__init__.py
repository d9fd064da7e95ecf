"""Regional prompt learning (RPL, the offline half of PromptDet, arXiv 2203.16513): prompts for crops of objects.

Object crops and retrieved web images train two short contexts around class name and description; their class
embeddings go to a detector. ``docs/REGIONAL_PROMPT.md`` shows the steps.
"""

from prompt_pretrain.regional import crop_data  # noqa: F401  registers its data sets
