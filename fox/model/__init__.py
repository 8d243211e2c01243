"""The Fox-1 architecture: a plain Llama decoder, deep and thin, with grouped-query attention and a tied embedding."""

from fox.model.config import ModelConfig
from fox.model.transformer import Transformer

__all__ = ["ModelConfig", "Transformer"]
