"""The miniature: a drawn world, a tiny Stable Diffusion and a tiny tagger trained on it; see README.md."""
