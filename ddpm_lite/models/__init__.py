"""Networks that predict ε, the exact answer for data whose law is known, and the autoencoder of chapter 2."""

from ddpm_lite.models.exact import ExactEps
from ddpm_lite.models.mlp import MLP
from ddpm_lite.models.unet import UNet
from ddpm_lite.models.vae import VAE

__all__ = ["MLP", "VAE", "ExactEps", "UNet"]
