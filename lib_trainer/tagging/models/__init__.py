"""Taggers on disk and from the hub: finding, fetching, opening, and what goes in and comes out."""
