"""Embeddings in the files of other systems."""
