"""One adapter per family of diffusion model: each turns what its network predicts into x0_hat."""
