"""Captions as tags: text in, text out. Nothing here reads or writes a file unless its module says so."""
