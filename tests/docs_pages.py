"""What the pages of the documentation take for granted: the reader's pictures, files and networks, all of them small.

A name means the same on every page. A page has a row in AS_RUN where its own words ask for hours, or for more than a test
has: what is printed -> what is run.
"""

import contextlib
import io
import re
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from docs_kit import Part, blocks_of
from PIL import Image
from torch import Tensor, nn

from noisebook.backbones.cod.nets import CodConfig, CodNet
from noisebook.cli.main import main
from noisebook.images.io import sample

HEIGHT, WIDTH = 168, 176  # of the reader's pictures; MS-SSIM wants 161


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


AS_RUN: dict[str, dict[str, str]] = {
    "README.md": {"--dist loadfile ": "--dist loadfile --version"},  # CI runs it whole, in a checkout
    "docs/backbones.md": {"roundtrip PICTURES --backbone DIR": "roundtrip cat.png --backbone cifar10-ddpm"},
    "docs/cli.md": {
        "convert FILE -o FILE": "convert CoD_pixel_vpred.pt -o CoD.safetensors",
        "spectrum DATA.npz": "pca DATA.npz",
        "edm DATA.npz -o DIR": "edm DATA.npz -o DIR --sizes 32 --minutes .01",
    },
    "docs/cod.md": {"--minutes 75": "--minutes .01", "--minutes 45": "--minutes .01", "--bpp .1": "--bpp .5"},
    "docs/datasets.md": {
        'device="cuda"': 'device="cpu"',
        '"TOKENS", codec': '"MINE", codec',
        "data[17]": "data[1]",
        "[17]": "[1]",
        "original(17)": "original(1)",
        "TRAIN.parquet -o TOKENS": "TRAIN.parquet -o TRAINED",
    },
    "docs/howto/imagenet.md": {"--resize 256": "--resize 48"},
    "docs/howto/stable-diffusion.md": {"PICTURES": "SMALL", "--bpp .3": "--bpp 4.4"},
    "docs/howto/web-service.md": {"8000": str(free_port())},
    "docs/modes.md": {"label=281": "label=1", "label=207": "label=2", "size=(256, 256)": "size=(16, 16)"},
    "docs/report.md": {
        "out/NAME.nbk": "out/0.nbk",
        "FILE.nbk --inputs PICTURE ": "out/1.nbk --inputs PICTURES/1.png ",
        " --lpips FILE --metrics ms-ssim": " --metrics psnr",  # the others need an extra, which metrics.md installs
    },
    "docs/training.md": {
        "--minutes 60": "--minutes .01",
        "minutes=60": "minutes=.02",
        "--learning-rate 2e-3": "--learning-rate 2e-3 --minutes .01",
        "--learning-rate 1e-4": "--learning-rate 1e-4 --minutes .01",
        "--pixels 262144": "--pixels 8192 --minutes .01",
        "--minutes 180": "--minutes .01 --pairs 16 --sizes 32",
    },
}

# Python that a page's own takes for granted
SCOPE: dict[str, str] = {
    "docs/backbones.md": "from my_package import MyNetwork\nmy_network = MyNetwork()",
    "docs/cod.md": "import noisebook, torch\nH = W = 64\nimages = torch.zeros(1, 3, H, W, dtype=torch.uint8)",
    "docs/concepts.md": (
        "import noisebook, torch\nH = W = 32\ncodec = noisebook.load('photo')\n"
        "tokens = codec.encode(torch.zeros(1, 3, H, W, dtype=torch.uint8))"
    ),
    "docs/metrics.md": "from noisebook.images.io import sample\npairs = [(sample('cat'), sample('cat')[::-1].copy())]",
    "docs/modes.md": "import torch",
    "docs/rules.md": "import noisebook\nspec = noisebook.load('photo').spec\nbackbone = noisebook.load('photo').backbone",
}


def crops(count: int, height: int, width: int) -> list[Image.Image]:
    """Different crops of three photographs."""
    out = []
    for i in range(count):
        picture = Image.fromarray(sample(("astronaut", "cat", "coffee")[i % 3])[:, :, :3])
        left, top = 16 * (i // 3) % 100, 24 * (i // 3) % 60
        out.append(picture.crop((left, top, left + 280, top + 210)).resize((width, height)))
    return out


def pictures(path: Path, height: int = HEIGHT, width: int = WIDTH) -> None:
    path.mkdir()
    for i, picture in enumerate(crops(2, height, width)):
        picture.save(path / f"{i}.png")


def run(*words: str) -> None:
    code = main(list(words))
    assert code == 0, f"{' '.join(words)}: exit code {code}"


def tokens(path: Path, *more: str) -> None:
    run("tokenize", "PICTURES", "-o", path.name, "--backbone", "gaussian-prior", "--workers", "0", *more)


def archive(path: Path, side: int, count: int = 100) -> None:
    np.savez(path, images=np.stack([np.asarray(x) for x in crops(count, side, side)]))


def parquet(path: Path, count: int = 6) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for i, picture in enumerate(crops(count, 32, 32)):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        rows.append({"img": {"bytes": buffer.getvalue(), "path": f"{i}.png"}, "label": i % 3})
    pq.write_table(pa.Table.from_pylist(rows), path)


def own_package(path: Path) -> None:
    """A network that is a rectified flow of photographs, and one weight."""
    path.write_text(
        "import torch\nfrom torch import nn\n\nfrom noisebook import backbones\n\n\n"
        "class MyNetwork(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.one, self.prior = nn.Parameter(torch.ones(())), [backbones.load('gaussian-prior')]\n\n"
        "    def forward(self, x, t):\n        t = min(float(t[0]), 0.9999)  # nearly pure noise\n"
        "        x0 = self.one * self.prior[0].denoise(x / (1 - t), t / (1 - t))\n        return (x - x0) / t\n"
    )
    torch.save({"one": torch.ones(())}, "weights.pt")


def own_factory(path: Path) -> None:
    (block,) = (b for b in blocks_of("docs/backbones.md") if b.file == path.name)
    path.write_text(block.text)


def published_cod(path: Path) -> None:
    """Few random weights under the names of the published ones."""
    net = CodNet(CodConfig(hidden=64, heads=4, blocks=3, cond_blocks=2, hidden_x=8, width=32))
    torch.save({"state_dict": {f"ema_denoiser.{name}": tensor for name, tensor in net.state_dict().items()}}, path)


def trunk(path: Path, convolutions: dict[int, tuple[int, ...]]) -> None:
    """Random convolutions as torchvision calls those of its networks."""
    tensors = {f"features.{i}.weight": 0.05 * torch.randn(shape) for i, shape in convolutions.items()}
    torch.save(tensors | {f"features.{i}.bias": torch.zeros(shape[0]) for i, shape in convolutions.items()}, path)


ALEXNET = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG16 = {place: (WIDTHS[i + 1], WIDTHS[i], 3, 3) for i, place in enumerate(PLACES)}


class Judge(nn.Module):
    """A distance of two batches, or features of one."""

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        if b is None:
            return torch.cat([a.mean(dim=[2, 3]), a.square().mean(dim=[2, 3])], 1)
        return (a - b).abs().mean(dim=[1, 2, 3])


def program(path: Path) -> None:
    torch.jit.script(Judge()).save(str(path))


def pipeline(path: Path, name: str) -> None:
    """A tiny pipeline of random weights in the layout of diffusers."""
    import tiny_pipelines

    tiny_pipelines.BUILDERS[name]().save_pretrained(path)


def classes(path: Path) -> None:
    """Two classes of JPEG files, as ImageNet has a thousand."""
    for name in ("n01440764", "n01443537"):
        (path / name).mkdir(parents=True)
        for i, picture in enumerate(crops(2, 48, 64)):
            picture.save(path / name / f"{name}_{i}.JPEG")


# a name in a page -> what makes it in the current folder; later ones may use or replace those above
NAMES: dict[str, Callable[[Path], object]] = {
    "PICTURES": pictures,
    "FOLDER": pictures,
    "SMALL": lambda path: pictures(path, 32, 48),
    "cat.png": lambda path: crops(2, 96, 128)[1].save(path),
    "mask.png": lambda path: Image.linear_gradient("L").resize((WIDTH, HEIGHT)).save(path),
    "FILES": lambda path: run("encode", "PICTURES", "-o", path.name, "--steps", "12"),
    "TOKENS": tokens,
    "LOW": lambda path: tokens(path, "--tokens", "64"),
    "MIDDLE": lambda path: tokens(path, "--tokens", "128"),
    "HIGH": lambda path: tokens(path, "--tokens", "256"),
    "TRAIN.parquet": parquet,
    "DATA.npz": lambda path: archive(path, 32),
    "cifar10.npz": lambda path: archive(path, 32),
    "cifar10_train.npz": lambda path: archive(path, 32),
    "photos.npz": lambda path: archive(path, 144),
    "photos256.npz": lambda path: archive(path, 96),
    "weights.pt": lambda path: torch.save({name: torch.rand(1, 1475, 1, 1) for name in ("alpha", "beta")}, path),
    "my_package": lambda _: own_package(Path("my_package.py")),
    "mine:make": lambda _: own_factory(Path("mine.py")),
    "CoD_pixel_vpred.pt": published_cod,
    "CoD.safetensors": lambda path: run("convert", "CoD_pixel_vpred.pt", "-o", path.name),
    "lpips_alex.torchscript.pt": program,
    "FILE": program,
    "alexnet-owt-7be5be79.pth": lambda path: trunk(path, ALEXNET),
    "vgg16-397923af.pth": lambda path: trunk(path, VGG16),
    "MODEL": lambda path: pipeline(path, "dit"),
    "SD": lambda path: pipeline(path, "sd"),
    "IMAGENET": classes,
}

NEEDS = {
    **dict.fromkeys(("FILES", "TOKENS", "LOW", "MIDDLE", "HIGH"), "PICTURES"),
    "CoD.safetensors": "CoD_pixel_vpred.pt",
    "mine:make": "my_package",
}


def granted(parts: list[Part]) -> set[str]:
    """The names of NAMES in the blocks of a page that run, without those that the page itself makes first."""
    text = "\n".join(block.text for part in parts for block in part.blocks)
    first = {name: re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w-])", text) for name in NAMES}
    return {name for name, at in first.items() if at and not text[: at.start()].endswith(("-o ", "rm -rf "))}


def furnish(folder: Path, names: set[str]) -> None:
    """Makes the things of these names in a folder."""
    wanted = names | {NEEDS[name] for name in names & NEEDS.keys()}
    with contextlib.chdir(folder):
        torch.manual_seed(0)
        for name, make in NAMES.items():
            if name in wanted:
                make(Path(name))
