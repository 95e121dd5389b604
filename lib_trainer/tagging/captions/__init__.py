"""Captions from scores: style, effect on a folder, and writing."""
