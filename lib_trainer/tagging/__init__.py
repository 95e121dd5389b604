"""Taggers: pictures in, tags with scores out; the cache of scores, the thresholds over it, and captions from it."""
