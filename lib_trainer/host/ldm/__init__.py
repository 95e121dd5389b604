"""The loaded-model port over CompVis' latent-diffusion classes, which the WebUI's models are made of.

Nothing here imports the WebUI or `ldm`: modules are told by what they have, so that patched and forked classes work.
"""
