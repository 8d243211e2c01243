"""Handing a model to other people's engines: written, read back and compared (gate) before it counts as done, with its card."""
