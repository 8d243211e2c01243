"""Running a model: what it has seen (kv_cache), the next token (sampler), a reply (generate), a conversation (conversation)."""
