"""The ports over diffusers: training and generating without a WebUI."""
