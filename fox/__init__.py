"""Fox: from web pages to a small language model that you trained, understand and run."""

__version__ = "0.1.0"
