"""Who rules whether a feature is a physical error: keyless, a multimodal model, thresholds; labels for new images."""
