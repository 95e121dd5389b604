"""Scores of pictures: computed once, kept beside the set, and thresholds over them."""
