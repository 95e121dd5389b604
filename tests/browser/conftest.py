"""gradio's own imports warn of deprecations that are none of ours: they are let through here, once."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import gradio as gradio
