"""Hostile checkpoints, diffusers folders, curves and archives: what a user is asked to give as --backbone, --curve, NPZ."""

import io
import json
import pickle
import struct
import zipfile
from typing import Any

import numpy as np
import torch

from bench.reliability.hostile_kit import Case, Command, Place
from bench.reliability.hostile_values import INTEGERS, Rng, mutated, nasty, some, string
from noisebook.backbones.checkpoint import read_checkpoint
from noisebook.backbones.registry import WEIGHTS
from noisebook.errors import NoisebookError
from noisebook.spec.curve import Curve

COST = (20.0, 1500.0)
FEW = [
    word
    for option in (
        "--steps 2",
        "--budget 4",
        "--budget-last 4",
        "--vocab-size 256",
        "--scale-pixels 0",
        "--tokens 0",
        "--start-budget 0",
    )
    for word in option.split()
]


def tiny(kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(config, tensors) of a small checkpoint of that kind."""
    from noisebook.backbones import load
    from noisebook.backbones.nets import convnet, gaussian

    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
    if kind == "dct-prior":
        return gaussian.fit_dct(images)
    if kind == "pca-prior":
        return gaussian.fit_pca(images)
    if kind == "spectrum-prior":
        return read_checkpoint(WEIGHTS / "gaussian-prior.safetensors")[1:]
    net = convnet.ConvDenoiser(load("gaussian-prior"), widths=(8, 8), blocks=1, embedding=8)
    return net.config, convnet.checkpoint_tensors(net)


KINDS = ("dct-prior", "pca-prior", "spectrum-prior", "convnet")
TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.uint8: "U8", torch.float64: "F64"}


def safetensors(header: dict[str, Any], blob: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + blob


def checkpoint(place: Place, rng: Rng) -> bytes:
    kind = KINDS[rng.integers(len(KINDS))]
    config, tensors = place.base["checkpoints"][kind]
    tree = {"kind": kind, "config": json.loads(json.dumps(config))}
    metadata = mutated(tree, rng, place.traps, some(rng, 3, 3, 1))
    header: dict[str, Any] = {"__metadata__": {"noisebook": json.dumps(metadata)}}
    blob = b""
    for name, tensor in tensors.items():
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(blob), len(blob) + len(data)],
        }
        blob += data
    names = [n for n in header if n != "__metadata__"]
    if rng.random() < 0.3:  # one tensor has another shape of as many numbers, or another name
        name = names[rng.integers(len(names))]
        shape = header[name]["shape"]
        how = some(rng, 1, 1, 1)
        if how == 0:
            header[name]["shape"] = [int(np.prod(shape)), 1]
        elif how == 1:
            header[string(rng, place.traps)] = header.pop(name)
        else:
            blob = bytes(rng.integers(0, 256, len(blob), np.uint8).tobytes())  # any numbers: NaN, inf, huge
    if rng.random() < 0.1:
        header = mutated(header, rng, place.traps, 1)
    if rng.random() < 0.05:
        odd = ["[" * 100_000, "[]", "null", '"x"', "{" * 50, '{"kind": ["a"], "config": 3}', "NaN"]
        header["__metadata__"] = {"noisebook": odd[rng.integers(len(odd))]}
    return safetensors(header, blob)


class Run:
    """Pickled, it runs a command where it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple:
        import os

        return os.system, (self.command,)


def make_checkpoint(place: Place, rng: Rng) -> Case:
    how = some(rng, 12, 1, 1)
    if how == 0:
        path = place.inputs / "m.safetensors"
        path.write_bytes(checkpoint(place, rng))
    else:  # pickles in disguise
        path = place.inputs / ("m.pt" if how == 1 else "m.pkl")
        value: Any = {"state_dict": {"ema_denoiser.x": Run(f"touch {place.traps.ran}")}}
        buffer = io.BytesIO()
        torch.save(value, buffer) if rng.random() < 0.5 else pickle.dump(value, buffer)
        path.write_bytes(buffer.getvalue())
    picture = place.inputs / "p.png"
    picture.write_bytes(place.base["png"])
    out = str(place.outputs / "o")
    limits = ["--max-pixels", "5000"]
    commands = [Command(["encode", str(picture), "--backbone", str(path), *FEW, "-o", out, *limits], *COST)]
    if how:
        commands.append(Command(["convert", str(path), "-o", str(place.outputs / "c.safetensors")], *COST))
    elif rng.random() < 0.2:
        commands.append(Command(["calibrate", str(path), str(picture), "-o", str(place.outputs / "c.json")], *COST))
    try:
        read_checkpoint(path)
        good = True
    except NoisebookError:
        good = False
    return Case(good, commands, path.name)


# ---- folders of diffusers -----------------------------------------------------------------------------------------------
def make_folder(place: Place, rng: Rng) -> Case:
    """A pipeline whose files of JSON name things."""
    folder = place.inputs / "pipe"
    (folder / "unet").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": "0.30.0",
        "_name_or_path": string(rng, place.traps),
        "unet": ["diffusers", str(rng.choice(["UNet2DModel", "UNet2DConditionModel", "FlaxUNet2DModel", "Evil"]))],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "vae": [None, None],
    }
    unet = {
        "_class_name": "UNet2DModel",
        "_name_or_path": string(rng, place.traps),
        "auto_map": {"AutoModel": "evil.Model"},
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": [8, 8],
        "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
    }
    scheduler = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02,
                 "beta_schedule": "linear", "prediction_type": "epsilon", "clip_sample": False}  # fmt: skip
    for name, tree in (("model_index", index), ("unet/config", unet), ("scheduler/scheduler_config", scheduler)):
        tree = mutated(tree, rng, place.traps, some(rng, 3, 2, 1))
        if type(tree.get("sample_size")) is int and 64 < tree["sample_size"] <= 1 << 14:
            tree["sample_size"] = 64  # a larger network is slow, and the user has named it
        text = json.dumps(tree)
        (folder / f"{name}.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    (folder / "evil.py").write_text(f"import os\nos.system('touch {place.traps.ran}')\n")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    if rng.random() < 0.8:
        weights.write_bytes(place.base["unet"])
    else:
        shards = {"weight_map": {"a": string(rng, place.traps), "b": "x.safetensors"}, "metadata": {}}
        text = json.dumps(mutated(shards, rng, place.traps, some(rng, 1, 1)))
        weights.with_name(weights.name + ".index.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    picture = place.inputs / "p.png"
    picture.write_bytes(place.base["png"])
    out = str(place.outputs / "o")
    command = Command(["encode", str(picture), "--backbone", str(folder), *FEW, "-o", out, "--max-pixels", "5000"], *COST)
    good = all(isinstance(_json(p), dict) for p in folder.rglob("*.json"))
    return Case(good, [command], "folder")


def _json(path: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except (ValueError, RecursionError):
        return None


# ---- curves and archives ------------------------------------------------------------------------------------------------
def make_curve(place: Place, rng: Rng) -> Case:
    tree = json.loads(place.base["curve"])
    text = json.dumps(mutated(tree, rng, place.traps, some(rng, 2, 3, 1)))
    path, picture = place.inputs / "c.json", place.inputs / "p.png"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    picture.write_bytes(place.base["png"])
    target = [["--bpp", "0.5"], ["--psnr", "25"], ["--bytes", "60"]][rng.integers(3)]
    arguments = ["encode", str(picture), "--backbone", "gaussian-prior", "--curve", str(path), *target]
    try:
        Curve.from_json(text)
        good = True
    except NoisebookError:
        good = False
    return Case(good, [Command([*arguments, "-o", str(place.outputs / "o"), "--max-nfe", "4"], *COST)], "curve")


def npy(rng: Rng, place: Place, shape: tuple, kind: str, data: bytes) -> bytes:
    """A .npy member whose header says what it likes."""
    text = f"{{'descr': {kind!r}, 'fortran_order': {bool(rng.random() < 0.2)}, 'shape': {shape!r}, }}"
    text = text if rng.random() < 0.9 else str(nasty(rng, place.traps))[:5000]
    body = text.encode("latin-1", "replace")
    body += b" " * (-(len(body) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", min(65535, len(body))) + body + data


def make_npz(place: Place, rng: Rng) -> Case:
    honest = rng.integers(0, 256, (6, 8, 8, 3), np.uint8)
    shape: tuple = honest.shape
    kind = "|u1"
    if rng.random() < 0.5:
        shape = tuple(int(INTEGERS[rng.integers(len(INTEGERS))]) if rng.random() < 0.4 else n for n in shape)
    if rng.random() < 0.2:
        kind = str(rng.choice(["|O", "<f8", "|u1", "<U1000000", "|S4", "<M8[s]"]))
    members = {"images.npy": npy(rng, place, shape, kind, honest.tobytes())}
    if rng.random() < 0.4:
        webp = place.base["webp"]
        offsets = np.array([0, len(webp), 2 * len(webp)])
        offsets = offsets if rng.random() < 0.5 else rng.choice([-1, 0, 5, 1 << 40, len(webp)], 5).astype(np.int64)
        blob = webp * 2 if rng.random() < 0.7 else place.base["eps"] * 2
        members = {
            "webp.npy": npy(rng, place, (len(blob),), "|u1", blob),
            "offsets.npy": npy(rng, place, offsets.shape, "<i8", offsets.astype("<i8").tobytes()),
        }
    path = place.inputs / "i.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        if rng.random() < 0.2:
            archive.writestr("zeros.npy", bytes(1 << 20))
    form = str(rng.choice(["dct", "pca", "spectrum"]))
    commands = [Command(["fit-prior", form, str(path), "-o", str(place.outputs / "f.safetensors"), "--count", "6"], *COST)]
    return Case(headers(path), commands, f"{shape} {kind}")


def headers(path: Any) -> bool:
    """Whether numpy takes the headers of all members."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name != "zeros.npy":
                    with archive.open(name) as member:
                        np.lib.format.read_magic(member)
                        np.lib.format.read_array_header_1_0(member)
        return True
    except Exception:  # numpy reads a header with Python's own parser
        return False
