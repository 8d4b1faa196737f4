"""CoD (arXiv 2511.18706): the compression-oriented diffusion model."""
