"""What `compare_checkouts.py` computes in each checkout: every rule, solver, shipped backbone, mode, file and preset, small.

The cases are written in the newest names of modules and options; `item` and `words` find those of an older checkout.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np

from checkout_names import CONTAINER, CURVE, FILES, MODES, PRESETS, TARGETS, item, words

Facts = dict[str, str]  # what was computed -> its SHA-256, or the hash of a specification
Case = tuple[str, bool, Callable[[], Facts]]  # name, whether it is one of --quick, how its facts are computed


# ---- inputs and hashes -----------------------------------------------------------------------------------------------
def pictures(seed: int, count: int, height: int, width: int) -> Any:
    """Random smooth pictures with a little noise, uint8 [B, 3, H, W]."""
    import torch

    rng = np.random.default_rng([seed, height, width])
    y, x = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    out = np.zeros((count, 3, height, width))
    for image in out.reshape(-1, height, width):
        for _ in range(6):
            across, down, phase, size = rng.uniform(-2, 2), rng.uniform(-2, 2), rng.uniform(0, 1), rng.uniform(0, 1)
            image += size * np.cos(2 * np.pi * (across * x + down * y + phase))
    out = 127.5 + 45 * out + rng.normal(0, 6, out.shape)
    return torch.from_numpy(out.clip(0, 255).astype(np.uint8))


def pixels(image: Any) -> np.ndarray:
    """uint8 [C, H, W] -> [H, W, C], as files take it."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def sha(value: Any) -> str:
    """Of bytes, text, an array or a tensor with its type and shape."""
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    array = np.ascontiguousarray(value if isinstance(value, np.ndarray) else value.detach().cpu().numpy())
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()


# ---- the cases -------------------------------------------------------------------------------------------------------
#: 4 steps of 16 tokens of 8 bits, whatever the backbone
SMALL = {"steps": 4, "budget": 16, "budget_last": 16, "vocab_size": 256, "scale_pixels": 0, "start_budget": 0}
RULES = {
    "bins": {"budget": 8, "budget_last": 64},
    "top": {"rule": "top", "budget": 21, "budget_last": 5},
    "pursuit": {"rule": "pursuit", "budget": 5, "budget_last": 5, "coefficient_bits": 3},
    "poisson": {"rule": "poisson", "budget": 33, "budget_last": 50, "vocab_size": 2048},
}
SOLVERS = {
    "mean": {},
    "euler": {"solver": "euler", "solver_steps": 4},
    "heun": {"solver": "heun", "solver_steps": 3},
    "ab2": {"solver": "ab2", "solver_steps": 5},
}
#: through the rest of the loop, for every rule
VARIANTS = {
    "independent": {"codebook": "independent"},
    "another seed": {"seed": 2**64 - 3},
    "start": {"start_budget": 8, "start_vocab_size": 1024},
    "p=0": {"p": 0, "sigma_max": 0.5, "rho": 0.7},
    "p=0.3": {"p": 0.3},
    "scaled": {"scale_pixels": 1000},
    "free steps": {"free_steps": 2},
}
SPACINGS = {
    "log": {},
    "karras": {"sigma_min": 0.05},
    "ddpm": {},
    "flow": {"sigma_max": 20.0},
    "turbo": {},
    "diffc": {"sigma_max": 400.0},
}
FLOAT32 = {"dtype": "float32"}  # of networks that are loaded by name: the default depends on the processor
CONDITIONS = {"none": {}, "first": {"condition": "first"}, "only": {"condition": "only", "steps": 5}}


@cache
def loaded(name: str, device: str) -> Any:
    """A shipped backbone, loaded once for all cases."""
    from noisebook import backbones

    return backbones.load(name, device)


class Cases:
    """All cases, on one device."""

    def __init__(self, device: str):
        self.device = device

    def all(self) -> Iterator[Case]:
        """Every case, in an order that keeps those of one backbone together."""
        for part in (self.rules, self.encoders, self.files, self.modes, self.backbones, self.conditions, self.presets):
            yield from part()

    # -- what cases share
    def backbone(self, name: str) -> Any:
        return loaded(name, self.device)

    def codec(self, backbone: Any, changes: dict[str, Any], **how: Any) -> Any:
        """The codec of a recipe: `changes` on top of SMALL."""
        import noisebook

        model = self.backbone(backbone) if isinstance(backbone, str) else backbone
        recipe = words(item("Recipe", *PRESETS), {**SMALL, **changes})
        return noisebook.load(backbone=model, device=self.device, **how, **recipe)

    def coded(self, make: Callable[[], Any], images: Any, weights: Any = None, steps: tuple[int, ...] = ()) -> Facts:
        """Every public verb of the codec that `make` makes. `steps`: decodes of so many."""
        import torch

        codec = make()
        size = (images.shape[2], images.shape[3])
        tokens = codec.encode(images, weights)
        again, image = codec.reconstruct(images, weights)
        parts = images.split(1) if codec.spec.rule == "poisson" else [images]  # whose payloads differ in length
        packed = [codec.encode_packed(part, weights) for part in parts]
        facts = {
            "specification": codec.spec.hash.hex(),
            "tokens": sha(tokens),
            "decode": sha(codec.decode(tokens, size)),
            "tokens of reconstruct": sha(again),
            "images of reconstruct": sha(image),
            "packed": sha(b"".join(part.cpu().numpy().tobytes() for part in packed)),
            "decode_packed": sha(torch.cat([codec.decode_packed(part, size) for part in packed])),
        }
        return facts | {f"decode, {n} steps": sha(codec.decode(tokens, size, n)) for n in steps}

    # -- the rules, on the smallest backbone
    def rules(self) -> Iterator[Case]:
        square, wide, odd = pictures(1, 2, 32, 32), pictures(2, 2, 40, 56), pictures(3, 1, 37, 45)
        for name, rule in RULES.items():
            make = partial(self.codec, "gaussian-prior")
            for solver, changes in SOLVERS.items():
                ended = partial(make, {**rule, **changes})
                yield f"rule/{name}/{solver}", True, partial(self.coded, ended, wide, steps=(1, 3))
            yield f"rule/{name}/odd size", True, partial(self.coded, partial(make, rule), odd)
            for variant, changes in VARIANTS.items():
                yield f"rule/{name}/{variant}", True, partial(self.coded, partial(make, {**rule, **changes}), square)
            if name == "poisson":  # which cuts chunks of its own
                continue
            for rows, columns in ((2, 3), (1, 4)):
                blocks = {**rule, "rows": rows, "columns": columns, "start_budget": 2}
                yield f"rule/{name}/{rows}x{columns} blocks", True, partial(self.coded, partial(make, blocks), wide)
        for name, changes in SPACINGS.items():
            make = partial(self.codec, "gaussian-prior", {"spacing": name, **changes})
            yield f"spacing/{name}", True, partial(self.coded, make, square)
        make = partial(self.codec, "gaussian-prior", {})
        yield "input/float", True, partial(self.coded, make, square.float() / 127.5 - 1)
        make = partial(self.codec, "gaussian-prior", {"vocab_size": 1000, "codebook": "independent"})
        yield "vocabulary/not a power of two", True, partial(self.coded, make, square)
        large = pictures(3, 1, 64, 96)
        for name, codebook, size in (("bins", "hadamard", 256), ("top", "hadamard", 300), ("top", "independent", 300)):
            changes = {"vocab_size": 65536, "budget": size, "budget_last": size, "codebook": codebook, "steps": 2}
            make = partial(self.codec, "gaussian-prior", {**RULES[name], **changes})
            yield f"large/{name}/{codebook}", True, partial(self.coded, make, large)

    # -- how an encoder chooses
    def encoders(self) -> Iterator[Case]:
        import torch

        square, wide = pictures(4, 2, 32, 32), pictures(5, 2, 40, 56)
        dense = {"budget": 16, "budget_last": 128}  # so that effort does something
        for effort in (0, 1, 2):
            make = partial(self.codec, "gaussian-prior", dense, effort=effort)
            yield f"effort/{effort}", True, partial(self.coded, make, square)
        for name, rule in RULES.items():
            for candidates in (1, 3):
                make = partial(self.codec, "gaussian-prior", rule, candidates=candidates)
                yield f"candidates/{name}/{candidates}", name == "bins", partial(self.coded, make, square)
        mask = torch.linspace(0.1, 1, 56).expand(2, 1, 40, 56).contiguous()
        for name, weights in (("per image", mask), ("for all", mask[:1])):
            make = partial(self.codec, "gaussian-prior", {"rows": 2, "columns": 2}, candidates=2)
            yield f"weights/{name}", True, partial(self.coded, make, wide, weights)

    # -- files, and codecs derived from a rate
    def files(self) -> Iterator[Case]:
        from noisebook import NoisebookError, backbones

        image = pixels(pictures(6, 1, 40, 56)[0])
        for name, rule in RULES.items():
            for embed in (None, False, True):
                make = partial(self.codec, "gaussian-prior", rule)
                yield f"file/{name}/embed {embed}", name == "bins", partial(self.file, make, image, embed)
        for asked in ({"bpp": 1.0}, {"bytes": 300}, {"psnr": 24.0}, {"bpp": 3.0, "vocab_size": 1024, "seed": 7}):
            name = " ".join(f"{k} {v}" for k, v in asked.items())
            yield f"target/{name}", "psnr" not in asked, partial(self.aimed, asked, image)
        for name in backbones.shipped():
            try:
                item("curve_of", *TARGETS)(self.backbone(name))
            except NoisebookError:  # it has no curve
                continue
            yield f"target/{name}", True, partial(self.derived, name)
        yield "calibrate/gaussian-prior", True, partial(self.measured, "gaussian-prior", False)
        yield "calibrate/cifar10-cod", False, partial(self.measured, "cifar10-cod", True)

    def file(self, make: Callable[[], Any], image: np.ndarray, embed: bool | None) -> Facts:
        codec = make()
        data = item("encode_picture", *FILES)(codec, image, embed)
        return {"file": sha(data), "picture": self.shown(codec, data)}

    def aimed(self, asked: dict[str, Any], image: np.ndarray) -> Facts:
        data, codec = self.aim("gaussian-prior", asked).file(image)
        spec = item("spec_of", *FILES)(self.container(data))
        return {
            "file": sha(data),
            "picture": self.shown(codec, data),
            "specification": codec.spec.hash.hex(),
            "specification read": "none" if spec is None else spec.hash.hex(),
        }

    def derived(self, backbone: str) -> Facts:
        """Specifications only, for several sizes and rates: no network runs."""
        aim = self.aim(backbone, {"bpp": 1.0})
        numbers = ((32, 32, 20), (64, 96, 300), (512, 768, 5000))
        return {f"{h} x {w}, {tokens} tokens": aim.codec(h, w, tokens).spec.hash.hex() for h, w, tokens in numbers}

    def measured(self, backbone: str, conditional: bool) -> Facts:
        """A curve, and a file of a codec that follows it."""
        images, model = pictures(7, 2, 32, 32), self.backbone(backbone)
        measure = item("measure", *CURVE)
        curve = measure(model, [images], nodes=9, conditional=conditional)
        data, codec = self.aim(backbone, {"bpp": 8.0}, curve).file(pixels(images[0]))
        return {"curve": sha(curve.to_json()), "file": sha(data), "picture": self.shown(codec, data)}

    def aim(self, backbone: str, asked: dict[str, Any], curve: Any = None) -> Any:
        model, target = self.backbone(backbone), item("Target", *TARGETS)
        curve = item("curve_of", *TARGETS)(model) if curve is None else curve
        return item("Aim", *TARGETS)(target(**words(target, {"max_nfe": 8, **asked})), model, curve)

    def container(self, data: bytes) -> Any:
        return item("Container", *CONTAINER).from_bytes(data)

    def shown(self, codec: Any, data: bytes) -> str:
        return sha(item("decode_picture", *FILES)(codec, self.container(data)))

    # -- tokens that no image chose, and tokens of parts of an image
    def modes(self) -> Iterator[Case]:
        for name, rule in RULES.items():
            yield f"generate/{name}", True, partial(self.generated, rule)
        yield "guide", False, self.guided
        for name, argument in (("downsample", (2,)), ("grey", ()), ("blur", (1.5,))):
            yield f"restore/{name}", True, partial(self.restored, name, argument)
        yield "edit", False, self.edited

    def generated(self, rule: dict[str, Any]) -> Facts:
        codec = self.codec("gaussian-prior", {**rule, "start_budget": 4})
        tokens, images = item("generate", *MODES)(codec, 2, (24, 40), 5)
        return {"tokens": sha(tokens), "images": sha(images)}

    def guided(self) -> Facts:
        codec = self.codec("gaussian-prior", {"start_budget": 4, "rows": 2})
        tokens, images = item("guide", *MODES)(codec, self.backbone("cifar10-edm"), 2, (32, 32), 3, 5)
        return {"tokens": sha(tokens), "images": sha(images)}

    def restored(self, operator: str, argument: tuple) -> Facts:
        codec = self.codec("gaussian-prior", {"budget": 1, "budget_last": 1, "start_budget": 1, "start_vocab_size": 256})
        apply = item(operator, *MODES)(*argument)
        seen = apply(pictures(8, 2, 24, 40).to(self.device).float() / 127.5 - 1)
        tokens, images = item("restore", *MODES)(codec, seen, apply, (24, 40))
        return {"observed": sha(seen), "tokens": sha(tokens), "images": sha(images)}

    def edited(self) -> Facts:
        source, target = (self.codec(name, {}) for name in ("gaussian-prior", "cifar10-edm"))
        return {"images": sha(item("edit", *MODES)(source, target, pictures(9, 1, 32, 32)))}

    # -- every backbone that comes with the package
    def backbones(self) -> Iterator[Case]:
        from noisebook import backbones

        square, wide = pictures(10, 1, 32, 32), pictures(11, 1, 40, 56)
        for name in backbones.shipped():
            for solver, changes in SOLVERS.items():
                make = partial(self.codec, name, {**changes, "solver_steps": 2, "steps": 2})
                yield f"backbone/{name}/{solver}", solver == "mean", partial(self.coded, make, square)
            for rule, changes in list(RULES.items())[1:]:
                make = partial(self.codec, name, {**changes, "steps": 2})
                yield f"backbone/{name}/{rule}", False, partial(self.coded, make, square)
            yield f"backbone/{name}/other size", False, partial(self.coded, partial(self.codec, name, {"steps": 2}), wide)
            yield f"backbone/{name}/levels", True, partial(self.levels, name)
        for name, how in (("bfloat16", {"dtype": "bfloat16"}), ("channels last", {"channels_last": True})):
            yield f"network/{name}", False, partial(self.accelerated, how, square)

    def levels(self, name: str) -> Facts:
        """The hash of what a model with levels of its own makes of a longer schedule, and its fingerprint."""
        codec = self.codec(name, {"steps": 7, **SOLVERS["heun"]})
        return {"specification": codec.spec.hash.hex(), "fingerprint": codec.backbone.fingerprint}

    def accelerated(self, how: dict[str, Any], images: Any) -> Facts:
        from noisebook import backbones

        model = backbones.load("cifar10-edm", self.device)  # not the one of the other cases, which it would change
        return self.coded(partial(self.codec, model, {"steps": 2}, **how), images)

    # -- a backbone's own tokens as the condition
    def conditions(self) -> Iterator[Case]:
        import noisebook

        square, wide = pictures(12, 1, 32, 32), pictures(13, 1, 40, 56)
        for name, changes in CONDITIONS.items():
            make = partial(self.codec, "cifar10-cod", changes)
            yield f"condition/{name}", True, partial(self.coded, make, square, steps=(2,))
            yield f"condition/{name}, other size", False, partial(self.coded, make, wide)
        make = partial(self.codec, "cifar10-cod", CONDITIONS["first"], candidates=3)
        yield "condition/first, candidates 3", False, partial(self.coded, make, square)
        for name, changes in list(CONDITIONS.items())[1:]:
            recipe = {**SMALL, **changes, **SOLVERS["ab2"]}

            def make(recipe: dict[str, Any] = recipe) -> Any:
                options = words(item("Recipe", *PRESETS), recipe)
                return noisebook.load(
                    backbone="cifar10-cod", device=self.device, conditions={"guidance": 1.5}, **FLOAT32, **options
                )

            yield f"condition/{name}, guidance", False, partial(self.coded, make, square)

    # -- presets
    def presets(self) -> Iterator[Case]:
        import noisebook

        square = pictures(14, 1, 32, 32)
        for name in item("presets", *PRESETS)():
            yield f"preset/{name}/specification", True, partial(self.preset, name)
            make = partial(noisebook.load, name, backbone=None, device=self.device, **FLOAT32)
            yield f"preset/{name}/coded", name == "photo", partial(self.coded, make, square)

    def preset(self, name: str) -> Facts:
        found = item("get", *PRESETS)(name)
        built = found.recipe.build(self.backbone(found.recipe.backbone))
        return {
            "number": str(found.number),
            "specification": sha(found.spec.to_json()),
            "hash": found.spec.hash.hex(),
            "built anew": built.hash.hex(),
        }
