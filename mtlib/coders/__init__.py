"""Sparse coders: one class whose settings are all the methods, its losses, presets, files and fast path."""
