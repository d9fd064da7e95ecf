"""The commands. Not part of the wheel; a regular package so that no other ``tools`` can take its place."""
