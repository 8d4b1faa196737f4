"""Metrics that other packages and programs compute. Each is imported where it is first used, and none may download.

`lpips` and `piq` make a network by downloading its trunk. Here they are given the user's own weights in its place.
"""

import importlib
import io
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noisebook.errors import BackboneError, NoisebookError, first_line
from noisebook.images.io import png_bytes

PROGRAMS = ("butteraugli_main", "butteraugli")  # of libjxl; of the first release
SECONDS = 600  # that the program may take for a picture
LAYERS = ("3", "8", "15", "22", "29")  # of VGG16's `features`: relu1_2, 2_2, 3_3, 4_3, 5_3
TRUNKS: dict[tuple[int, ...], str] = {
    (64, 3, 11, 11): "alex",
    (64, 3, 3, 3): "vgg",
}  # shape of the first convolution -> what lpips calls it
CHANNELS = (3, 64, 128, 256, 512, 512)  # of the picture and of these layers


class Misfit(ValueError):
    """Tensors that are not those of the network."""


def needed(package: str, error: Exception) -> BackboneError:
    """What to say where a package of the extra is missing, or does not load."""
    if isinstance(error, ModuleNotFoundError):
        return BackboneError(f"this metric needs {error.name or package}: pip install 'noisebook[metrics]'")
    return BackboneError(f"{package} cannot be loaded ({first_line(error)}): install it, and a torchvision that fits torch")


def release(package: str) -> str:
    """A package with its version, as results name it."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


# ---- without a network --------------------------------------------------------------------------------------------------
def ms_ssim() -> Any:
    """(uint8 [B, 3, H, W] twice) -> [B]: Wang, Simoncelli, Bovik 2003, of `piq`; in float64."""
    try:
        piq = importlib.import_module("piq")
    except Exception as error:
        raise needed("piq", error) from error

    def measure(a: Tensor, b: Tensor) -> Tensor:
        return piq.multi_scale_ssim(a.double(), b.double(), data_range=255, reduction="none")

    return measure


def ssimulacra2() -> Any:
    """(uint8 [H, W, 3] twice) -> float: SSIMULACRA 2.1 of `ssimulacra2`; on the CPU."""
    try:
        package = importlib.import_module("ssimulacra2")
    except Exception as error:
        raise needed("ssimulacra2", error) from error

    def measure(a: np.ndarray, b: np.ndarray) -> float:
        return float(package.compute_ssimulacra2(io.BytesIO(png_bytes(a)), io.BytesIO(png_bytes(b))))

    return measure


def butteraugli_program() -> Path:
    """The program on the user's PATH. Raises NoisebookError where there is none."""
    for name in PROGRAMS:
        if found := shutil.which(name):
            return Path(found)
    raise NoisebookError(
        f"--metrics butteraugli needs the program {' or '.join(PROGRAMS)} on the PATH: it is in libjxl's tools (Debian: "
        "libjxl-devtools)"
    )


def butteraugli(program: Path, a: np.ndarray, b: np.ndarray) -> float:
    """uint8 [H, W, 3] twice -> the distance that `program` prints first. Raises NoisebookError where it fails."""
    with tempfile.TemporaryDirectory(prefix="noisebook-") as folder:
        files = [Path(folder) / name for name in ("original.png", "decoded.png")]
        for file, pixels in zip(files, (a, b), strict=True):
            file.write_bytes(png_bytes(pixels))
        try:
            done = subprocess.run(
                [program, *files], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoisebookError(f"{program.name}: {first_line(error)}") from error
    text = done.stdout.decode(errors="replace")
    number = re.search(r"^\D*?(\d+(\.\d+)?(e[+-]?\d+)?)\s*$", text.partition("\n")[0].rstrip(), re.IGNORECASE)
    if done.returncode or number is None:
        said = (done.stderr.decode(errors="replace") or text).strip()
        raise NoisebookError(f"{program.name} ended with {done.returncode}: {first_line(ValueError(said))}")
    return float(number[1])


# ---- with the user's own trunk ------------------------------------------------------------------------------------------
def lpips_network(tensors: Mapping[str, Tensor]) -> tuple[nn.Module, str]:
    """(two batches [B, 3, H, W] in [-1, 1] -> distances, name of the trunk) of `lpips` 0.1 (Zhang et al. 2018), with a trunk
    of torchvision's AlexNet or VGG16 (`features.N.weight`), or with all tensors of a `lpips.LPIPS`. The linear layers of
    a bare trunk are those that the package carries. Raises Misfit for other tensors."""
    whole = "lin0.model.1.weight" in tensors
    first = tensors.get("net.slice1.0.weight" if whole else "features.0.weight")
    trunk = TRUNKS.get(tuple(first.shape)) if first is not None else None
    if trunk is None:
        raise Misfit("neither AlexNet nor VGG16 of torchvision, nor a state dict of lpips.LPIPS")
    try:
        package = importlib.import_module("lpips")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torchvision, about how the package calls it
            net = package.LPIPS(net=trunk, version="0.1", pnet_rand=True, verbose=False)  # pnet_rand: no download
    except Exception as error:
        raise needed("lpips", error) from error
    mine = net if whole else net.net
    names = {name: name if whole else _flat(name) for name in mine.state_dict()}
    if whole:  # constants, and names that the package has for the linear layers a second time
        names = {name: name for name in names if name in tensors or not name.startswith(("lins.", "scaling_layer."))}
    _load(mine, names, tensors, strict=False)
    return net.eval(), trunk


def _load(net: nn.Module, names: Mapping[str, str], tensors: Mapping[str, Tensor], strict: bool = True) -> None:
    """Gives `net` the tensors that `names` has for its own names. Raises Misfit where one is missing or of another shape."""
    if missing := set(names.values()) - tensors.keys():
        raise Misfit(f"{min(missing)} is missing")
    try:
        net.load_state_dict({own: tensors[name].float() for own, name in names.items()}, strict=strict, assign=True)
    except RuntimeError as error:
        raise Misfit(" ".join(str(error).split())[:200]) from error


def _flat(name: str) -> str:
    """slice2.3.weight, of lpips and DISTS, -> features.3.weight, of torchvision: the number is the same."""
    return "features." + name.split(".", 1)[1]


def dists_network(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Two batches [B, 3, H, W] in [-1, 1] -> distances [B] of DISTS (Ding et al. 2020) by `piq`, with VGG16's convolutions
    (`features.N.weight` of torchvision, or `stageK.N.weight` of dists-pytorch) and DISTS' own `alpha` and `beta`. At the
    picture's own size, as in dists-pytorch. Raises Misfit for other tensors."""
    own = [tensors[name] for name in ("alpha", "beta") if name in tensors and tensors[name].numel() == sum(CHANNELS)]
    if len(own) < 2:
        raise Misfit(f"alpha and beta of {sum(CHANNELS):,} numbers are missing: give weights.pt of dists-pytorch as well")
    flat = {name if name.startswith("features.") else _flat(name): t for name, t in tensors.items() if "." in name}
    try:
        vision = importlib.import_module("torchvision.models")
        piq = importlib.import_module("piq")
    except Exception as error:
        raise needed("piq", error) from error
    with torch.device("meta"):  # the numbers come from the file
        trunk = vision.vgg16(weights=None).features
    _load(trunk, {name: f"features.{name}" for name in trunk.state_dict()}, flat)
    total = sum(float(tensor.double().sum()) for tensor in own)
    parts = [part for tensor in own for part in _shares(tensor, total)]

    class Dists(piq.DISTS):
        """`piq.DISTS` without its constructor, which downloads, and without its scaling to 256 pixels."""

        def __init__(self) -> None:
            how = {"replace_pooling": True, "reduction": "none", "allow_layers_weights_mismatch": True}
            super(piq.DISTS, self).__init__(trunk, LAYERS, parts, **how)  # pyright: ignore[reportCallIssue] - nn.Module's

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return 1 - super(piq.DISTS, self).forward((a + 1) / 2, (b + 1) / 2)

    return Dists().eval()


def _shares(tensor: Tensor, total: float) -> list[Tensor]:
    """alpha or beta -> its part for each layer, [1, C, 1, 1] each."""
    return list((tensor.double() / total).float().view(1, -1, 1, 1).split(list(CHANNELS), dim=1))
