"""The ports over the running WebUI: the only place that imports its `modules`.

Capabilities are probed (what attributes exist), never names or versions of forks.
"""
