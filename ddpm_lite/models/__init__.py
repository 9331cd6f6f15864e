"""Networks that predict ε: the UNet, and the exact answer for data whose law is known."""

from ddpm_lite.models.exact import ExactEps
from ddpm_lite.models.mlp import MLP
from ddpm_lite.models.unet import UNet

__all__ = ["MLP", "ExactEps", "UNet"]
