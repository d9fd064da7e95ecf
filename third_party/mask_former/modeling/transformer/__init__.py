"""The transformer, its positions and the predictor of queries."""
