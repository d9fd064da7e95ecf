"""A regular package, so that a ``tests`` package in site-packages cannot take its place."""
