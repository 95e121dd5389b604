"""Hosts: the ports over the WebUI (`webui`), over diffusers (`standalone`), and what both share."""
