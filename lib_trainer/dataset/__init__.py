"""From a folder of pictures to batches of latents: scanning, decoding and fitting, caching, batching."""
