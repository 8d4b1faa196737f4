"""Denoisers: one small adapter per family of model, each giving `x0_hat = D(y, sigma)`, and the registry that finds them.

A backbone is named by a word (shipped with the package), by a `.safetensors` file that noisebook wrote, by a published
`.pt` file of CoD, by a folder in diffusers layout, by a hub's OWNER/NAME, or by MODULE:FACTORY, a function of the user's.
"""

from noisebook.backbones.base import Backbone, fingerprint_of
from noisebook.backbones.registry import load, load_recorded, shipped

__all__ = ["Backbone", "fingerprint_of", "load", "load_recorded", "shipped"]
