from torch import Tensor

class Wan21:
    latent_channels: int
    latents_mean: Tensor
    latents_std: Tensor
    latent_rgb_factors: list[list[float]]
    latent_rgb_factors_bias: list[float]
    taesd_decoder_name: str | None
