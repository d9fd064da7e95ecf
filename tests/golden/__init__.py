"""Recorded reference numbers and the weight filler that goes with them; see README.md."""
