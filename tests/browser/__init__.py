"""Tests of the page in headless Chromium. A package, so that what lives as long as they do is shut behind them."""
