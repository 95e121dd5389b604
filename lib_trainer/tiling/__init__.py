"""A KL VAE's encoder and decoder over row bands: the untiled result in a fraction of the memory.

Knows no host. `engine.run` is the way in, `attach.banded` puts it in the place of one module's `forward`.
"""
