"""Making backbones."""
