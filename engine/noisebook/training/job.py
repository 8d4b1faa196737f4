"""What to train: a value that says all of a run, checked before any work. No torch here: the command line reads it."""

from dataclasses import dataclass
from pathlib import Path

from noisebook.errors import TrainingError

OBJECTIVES = {
    "edm": "a denoiser (Karras et al. 2022)",
    "flow": "a rectified flow",
    "consistency": "a consistency model, tuned from --init (easy consistency tuning)",
    "reflow": "a flow made straighter on pairs that --init makes",
    "realism": "the network that makes the convincing picture of what the codec of --init decodes",
    "cod": "CoD: a flow conditioned on few tokens, which it learns to make at the same time",
}
CHOICES = {
    "objective": tuple(OBJECTIVES),
    "network": ("conv", "unet"),
    "stride": (4, 8, 16, 32),
    "optimizer": ("adamw", "muon"),
    "dtype": ("float32", "bfloat16"),
}


@dataclass(frozen=True)
class TrainingJob:
    """What to train, on what, and for how long; each field is an option of `noisebook train`. Raises TrainingError.

    objective      one of OBJECTIVES
    data           an .npz with `images` uint8 [N, H, W, C], or WebP files in `webp` and `offsets`
    output         the folder of the run; the same job again resumes it
    minutes        of training time, summed over all resumed parts
    init           a backbone's name or file: start from its network
    network        conv or unet: without `init`
    widths         channels of each level; cod: of the DiT, and of the condition codec
    blocks, patch  residual blocks per level, and pixels on each axis that a network's input gathers
    stride, bits   cod: pixels of a condition token on each axis, and its bits
    share          cod: share of images at a random time; the others are at pure noise, where one step must do
    dropped        cod: share of images without a condition; 1: a model that has none
    autoencoder    cod: train on latents, see `read_autoencoder`; they have `latents` channels
    align          cod: a TorchScript network, images [B, 3, H, W] in [-1, 1] -> features [B, C, h, w]; its code is run
    features       realism: file of a trained network whose first blocks say how far pictures are apart, see perceptual.py
    curve          realism: what `noisebook calibrate` wrote of `init`; None: the one that came with it
    error          realism: weight of the squared error, over the square of the level's scale
    adversarial    realism: weight of what a discriminator says
    sizes          sides of the crops, in turn; None: 64 and 128, realism 128
    random_sizes   each batch draws its side between the least and the largest of `sizes`
    shrink         half of the batches see the images at 1/2 to 1 of their size
    compile        run the network through torch.compile
    pixels         in a batch
    learning_rate  at its height
    optimizer      adamw or muon
    level          edm, consistency: mean and deviation of the trained ln sigma
    pairs          reflow: pairs of noise and image (None: 4096); realism: decodes (None: 3000)
    held_out       the last images are never trained on
    save_every     minutes between two saves
    dtype          float32 or bfloat16, in which the network computes; None: bfloat16 on CUDA, else float32
    """

    objective: str
    data: str | Path
    output: str | Path
    minutes: float = 60.0
    init: str | None = None
    network: str = "conv"
    widths: tuple[int, ...] | None = None
    blocks: int | None = None
    patch: int | None = None
    stride: int = 8
    bits: int = 8
    share: float = 0.75
    dropped: float = 0.1
    autoencoder: str | None = None
    latents: int = 4
    align: str | Path | None = None
    features: str | Path | None = None
    curve: str | Path | None = None
    error: float = 1.0
    adversarial: float = 0.0
    sizes: tuple[int, ...] | None = None
    random_sizes: bool = False
    shrink: bool = False
    compile: bool = False
    pixels: int = 3 << 14
    learning_rate: float = 5e-4
    optimizer: str = "adamw"
    level: tuple[float, float] | None = None
    pairs: int | None = None
    held_out: int = 64
    save_every: float = 5.0
    device: str = "cpu"
    dtype: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices and not (name == "dtype" and value is None):
                raise TrainingError(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}")
        if self.objective in ("consistency", "reflow", "realism") and not self.init:
            raise TrainingError(f"{self.objective} starts from a trained network: give --init")
        if self.minutes <= 0 or self.pixels < 1 or self.learning_rate <= 0 or self.pair_count < 1 or self.held_out < 1:
            raise TrainingError("--minutes, --pixels, --learning-rate, --pairs and --held-out must be above 0")
        if not self.crops:
            raise TrainingError("--sizes must name at least one side")
        if self.objective == "realism":
            if self.random_sizes or self.shrink:
                raise TrainingError("realism trains on crops that were made before: without --random-sizes and --shrink")
            if not self.features:
                raise TrainingError(
                    "realism is judged by a trained network while it is trained: give --features FILE, torchvision's VGG16 "
                    "(vgg16-397923af.pth of download.pytorch.org/models)"
                )
            if self.error < 0 or self.adversarial < 0:
                raise TrainingError("--error and --adversarial must be 0 or above")
            if self.pair_count < 16 * len(self.crops):
                raise TrainingError("realism needs 16 --pairs a size at least: one of each rate")

    @property
    def crops(self) -> tuple[int, ...]:
        """The sides of the crops."""
        return ((128,) if self.objective == "realism" else (64, 128)) if self.sizes is None else tuple(self.sizes)

    @property
    def pair_count(self) -> int:
        """How many pairs or decodes are made before the training."""
        return (3000 if self.objective == "realism" else 4096) if self.pairs is None else self.pairs

    @property
    def number_type(self) -> str:
        """float32 or bfloat16, in which the network computes."""
        return self.dtype or ("bfloat16" if self.device.startswith("cuda") else "float32")

    @property
    def recipe(self) -> str:
        """What else must be the same when a run is resumed, beside the numbers of `TrainingSettings`. It is kept in the
        run's state, so its spelling does not change."""
        names = ["objective", "init", "network", "widths", "blocks", "patch", "level", "pairs"]
        if self.objective == "cod":
            names += ["stride", "bits", "share", "dropped", *(["align"] if self.align else [])]
            names += ["autoencoder", "latents"] if self.autoencoder else []
        names += ["error", "adversarial"] if self.objective == "realism" else []
        values = {name: getattr(self, name) for name in names} | {"pairs": self.pair_count}
        return " ".join(f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in values.items())
