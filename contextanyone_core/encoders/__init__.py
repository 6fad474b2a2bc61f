"""The encoders: video VAE, umT5 text encoder, CLIP's vision tower, and the dual encoder of references."""
