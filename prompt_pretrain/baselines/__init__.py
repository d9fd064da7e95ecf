"""Other ways to adapt a frozen CLIP to a vocabulary, on the same text encoder, data and training loop as POMP."""
