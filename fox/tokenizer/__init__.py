"""From text to token ids and back (tokenizer), the vocabulary's training (train), and conversations (chat)."""

from fox.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
