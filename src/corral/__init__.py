"""corral: serve language models from your own hardware."""

__version__ = "0.1.0"
