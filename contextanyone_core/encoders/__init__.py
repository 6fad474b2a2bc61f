"""The encoders around the transformer: video VAE, text, CLIP's vision tower, and the dual encoder of references."""
