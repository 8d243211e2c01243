"""GGUF, the model file of llama.cpp and its kin: one file of metadata and of tensors, most of them quantised in blocks."""
