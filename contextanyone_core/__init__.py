"""The ContextAnyone model, generation and command line, on torch; independent of ComfyUI and of the trainer."""
