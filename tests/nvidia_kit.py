"""Pickles of the structure of NVIDIA's EDM checkpoints, with tiny random networks inside."""

import math
import pickle
import sys
import types

import numpy as np
import torch
from torch import nn

from noisebook.backbones.nets.song_unet import DhariwalUNet, SongUNet

NETWORKS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
DDPMPP = {
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "augment_dim": 9,
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
}
NCSNPP = {
    **DDPMPP,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
    "channel_mult": [1, 2, 2],
}
ADM = {"model_channels": 64, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [4]}
TINY = {"DDPM++": ("SongUNet", DDPMPP), "NCSN++": ("SongUNet", NCSNPP), "ADM": ("DhariwalUNet", ADM)}
CONSTANTS = {
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100},
    "EDMPrecond": {"sigma_data": 0.5, "sigma_max": math.inf},
    "iDDPMPrecond": {"M": 8},
}


# ---- pickles of the published structure ---------------------------------------------------------------------------------
def _reconstruct_persistent_obj(meta):
    raise AssertionError("called by its name only")


class EasyDict(dict):
    pass


def as_nvidia(monkeypatch):
    """Makes pickle write the names of NVIDIA's modules; with `monkeypatch.undo` they are gone when the file is read."""
    for module, thing in (("torch_utils.persistence", _reconstruct_persistent_obj), ("dnnlib.util", EasyDict)):
        made = types.ModuleType(module)
        setattr(made, thing.__name__, thing)
        for place in (module.partition(".")[0], module):
            monkeypatch.setitem(sys.modules, place, made)
        monkeypatch.setattr(thing, "__module__", module)
    return monkeypatch


class Persistent(nn.Module):
    """An object that is pickled as `torch_utils.persistence` does it: with its source code, which the reader is to run."""

    source = ""

    def __init__(self, class_name, **state):
        super().__init__()
        self.__dict__["_class_name"] = class_name
        self.__dict__.update(state, _init_args=(), _init_kwargs=state.get("_init_kwargs", {}))

    def __reduce__(self):
        name, state = self._class_name, self.__dict__
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": name, "state": state}
        return _reconstruct_persistent_obj, (meta,)


def persistent(module):
    """A copy of a network in which every layer carries its source code, but for the two dictionaries of blocks."""
    children = {k: persistent(v) for k, v in module._modules.items() if v is not None and not isinstance(v, nn.Identity)}
    if isinstance(module, nn.ModuleDict):
        return nn.ModuleDict(children)
    made = Persistent(type(module).__name__, skip_scale=np.sqrt(0.5), label_dropout=0, map_label=None)
    made._parameters.update(module._parameters)
    made._buffers.update(module._buffers, resample_filter=module._buffers.get("resample_filter"))
    made._modules.update(children)
    return made


def tiny_network(kind, label_dim=0, out=3, seed=0):
    """(name of its class, its arguments, the network with random weights) at 8 x 8 pixels."""
    torch.manual_seed(seed)
    name, options = TINY[kind]
    options = {"img_resolution": 8, "in_channels": 3, "out_channels": out, "label_dim": label_dim, **options}
    net = NETWORKS[name](**options)
    for tensor in net.state_dict().values():
        if tensor.ndim != 4 or len(tensor) > 1:  # a filter stays what it is
            nn.init.normal_(tensor, std=0.15)
    return name, options, net


def checkpoint(precond, kind, label_dim=0, **changes):
    """What NVIDIA's training pickles, and the network inside."""
    name, options, net = tiny_network(kind, label_dim, out=6 if precond == "iDDPMPrecond" else 3)
    model = persistent(net)
    model.__dict__.update(_class_name=name, _init_kwargs=EasyDict(options, dropout=0.13, **changes))
    ema = Persistent(precond, img_resolution=8, use_fp16=False, **CONSTANTS[precond])
    ema.add_module("model", model)
    if precond == "iDDPMPrecond":
        ema.register_buffer("u", torch.tensor([80.0, 20, 6, 2, 0.7, 0.2, 0.05, 0.01, 0]))
    return {"ema": ema, "loss_fn": Persistent("EDMLoss", P_mean=-1.2), "dataset_kwargs": EasyDict(path="x.zip")}, net


def write(path, content, protocol=pickle.DEFAULT_PROTOCOL):
    path.write_bytes(pickle.dumps(content, protocol))
    return path
