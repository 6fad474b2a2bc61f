"""Everything of ComfyUI's that the nodes use: its network and model classes, loaders, conditioning and sampling.

The only place of the pack that imports `comfy` and `torch`; the node classes beside it stay free of both.
"""
