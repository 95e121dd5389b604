"""VAEs that were published, known by the SHA-256 of their files.

Those hashes are what Hugging Face calls the files by in its own storage; each stands with the same name in at least two
lists that do not depend on each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

READ = 1 << 22
"""Bytes of a file that are hashed at a time."""
MSE = "vae-ft-mse-840000-ema-pruned (stabilityai)"
EMA = "vae-ft-ema-560000-ema-pruned (stabilityai)"
SD15 = "the VAE of v1-5 (runwayml)"
SDXL = "sdxl_vae (stabilityai)"
FIX = "sdxl-vae-fp16-fix (madebyollin)"
PUBLISHED: dict[str, str] = {
    "735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75": MSE,  # .safetensors
    "c6a580b13a5bc05a5e16e4dbb80608ff2ec251a162311590c1f34c013d7f3dab": MSE,  # .ckpt
    "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815": MSE,  # diffusers
    "0b204ad0cae549e0a7e298d803d57e36363760dec71c63109c1da3e1147ec520": EMA,  # .ckpt
    "32db726da04f06c1b6b14c0043ce115cc87a501482945c5add89a40d838fcb46": EMA,  # diffusers
    "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c": SD15,  # diffusers
    "4fbcf0ebe55a0984f5a5e00d8c4521d52359af7229bb4d81890039d2aa16dd7c": SD15,  # diffusers, fp16
    "df3c506e51b7ee1d7b5a6a2bb7142d47d488743c96aa778afb0f53a2cdc2d38d": "kl-f8-anime2 (hakurei)",
    "f921fb3f29891d2a77a6571e56b8b5052420d2884129517a333c60b1b4816cdf": "Anything-V3.0.vae, also called animevae",
    "63aeecb90ff7bc1c115395962d3e803571385b61938377bc7089b36e81e92e2e": SDXL,  # .safetensors
    "1598f3d24932bcfe6634e8b618ea1e30ab1d57f5aad13a6d2de446d2199f2341": SDXL,  # diffusers; SDXL base 1.0 has it too
    "bcb60880a46b63dea58e9bc591abe15f8350bde47b405f9c38f4be70c6161e68": "the VAE of stable-diffusion-xl-base-1.0",
    "235745af8d86bf4a4c1b5b4f529868b37019a10f7c0b2e79ad0abca3a22bc6e1": FIX,  # .safetensors
    "1b909373b28f2137098b0fd9dbc6f97f8410854f31f84ddc9fa04b077b0ace2c": FIX,  # diffusers
}
"""{SHA-256 of a file: what was published under it}"""


def published(path: Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """What a VAE's file, or that in a diffusers folder, was published as; empty where that is not known.

    `advance` is told the bytes that were read.
    """
    told = hashlib.sha256()
    if path.is_dir():
        inside = sorted(one for one in (path / "vae").glob("*") if one.suffix in (".safetensors", ".bin"))
        return published(inside[0], advance) if len(inside) == 1 else ""
    with path.open("rb") as file:
        while piece := file.read(READ):
            told.update(piece)
            advance(len(piece))
    return PUBLISHED.get(told.hexdigest(), "")
