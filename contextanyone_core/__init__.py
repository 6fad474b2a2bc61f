"""The ContextAnyone model and generation: torch only, nothing of ComfyUI and nothing of training."""
