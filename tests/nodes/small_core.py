"""A custom node pack for the tests' ComfyUI alone: two of core's networks are small, so that small files of them load.

ComfyUI builds umT5-XXL and BiRefNet at one fixed size. Here the text encoder keeps the names of its tensors and the
width of its output, and the background remover takes the middle of a picture for the person.
"""

CONFIG = {
    "d_ff": 16, "d_kv": 8, "d_model": 4096, "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True,
    "model_type": "umt5", "num_heads": 4, "num_layers": 2, "vocab_size": 64,
}  # fmt: skip
NODE_CLASS_MAPPINGS: dict[str, type] = {}


def shrink() -> None:
    """Let ComfyUI build the two networks small."""
    import comfy.text_encoders.wan as wan
    import torch

    class SmallEncoder(wan.UMT5XXlModel):
        def __init__(self, *arguments, model_options=None, **given):
            options = {**(model_options or {}), "umt5xxl_model_config": CONFIG}
            super().__init__(*arguments, model_options=options, **given)

    wan.UMT5XXlModel = SmallEncoder

    class SmallRemover(torch.nn.Module):
        def __init__(self, *_):
            super().__init__()

        def forward(self, pixel_values):
            logits = torch.full_like(pixel_values[:, :1], -9.0)
            height, width = logits.shape[-2:]
            logits[..., height // 8 :, width // 4 : -width // 4] = 9.0
            return logits

    try:
        from comfy.bg_removal_model import BG_REMOVAL_MODELS
    except ImportError:  # an older ComfyUI has none
        return
    BG_REMOVAL_MODELS["birefnet"] = SmallRemover


shrink()
