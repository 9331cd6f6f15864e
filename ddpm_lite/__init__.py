"""ddpm_lite: denoising diffusion (DDPM), derived in a book and small enough to read.

>>> import ddpm_lite
>>> images = ddpm_lite.load("digits").sample(64)
"""

__version__ = "0.1.0"

from ddpm_lite.bound import variational_bound
from ddpm_lite.checkpoint import CheckpointError
from ddpm_lite.model import Model, load
from ddpm_lite.models import MLP, VAE, ExactEps, UNet
from ddpm_lite.objective import simple_loss
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.sampler import ancestral, ddim, dpm_solver, sample
from ddpm_lite.schedule import NoiseSchedule, cosine_schedule, linear_schedule

__all__ = [
    "MLP",
    "VAE",
    "CheckpointError",
    "ExactEps",
    "GaussianDiffusion",
    "Model",
    "NoiseSchedule",
    "UNet",
    "ancestral",
    "cosine_schedule",
    "ddim",
    "dpm_solver",
    "linear_schedule",
    "load",
    "sample",
    "simple_loss",
    "variational_bound",
]
