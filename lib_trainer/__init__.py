"""WebUI trainer: train Stable Diffusion add-ons inside the WebUI, on the checkpoint that is already loaded."""

__version__ = "0.1.0"
