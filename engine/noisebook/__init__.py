"""noisebook: images to integer tokens and back, with any pretrained diffusion model and no training."""

__version__ = "0.1.0"
