"""What the quickstart does with detector and segmenter, beyond what prompt_pretrain.quickstart does with prompts."""
