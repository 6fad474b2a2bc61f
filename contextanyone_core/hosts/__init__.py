"""The only places that import diffusers and transformers."""
