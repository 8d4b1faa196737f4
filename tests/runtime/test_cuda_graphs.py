"""Graphs and what they need of the codec, without a GPU: the cache, static buffers, no host synchronisation, the ranges."""

import dataclasses
import gc
import itertools
import warnings
import weakref

import pytest
import torch

import fake_cuda
from common import RECIPES, Shrink, random_images
from noisebook import backbones
from noisebook.backbones.cod.cod import CoD
from noisebook.backbones.cod.nets import CodConfig, CodNet
from noisebook.backbones.nets.autoencoders import DiffusersAutoencoder, TinyAutoencoder
from noisebook.backbones.nets.convnet import ConvDenoiser, PriorBackbone
from noisebook.backbones.nets.gaussian import PCAPrior
from noisebook.backbones.wrappers import pieces
from noisebook.backbones.wrappers.latent import Latent
from noisebook.backbones.wrappers.tiled import Tiled
from noisebook.codebook import Codebook
from noisebook.codec.codec import Codec
from noisebook.codec.decoder import decode
from noisebook.codec.encoder import encode
from noisebook.errors import CodecMismatchError, FormatError, ImageError
from noisebook.format import container
from noisebook.rules.poisson import Poisson
from noisebook.runtime import profiler as stages
from noisebook.runtime.cuda_graphs import Graphs, graph_cached, holding
from noisebook.spec.presets import Recipe
from noisebook.spec.step import StepIndex

pytestmark = pytest.mark.filterwarnings("ignore:quality stalls")


CASES = {**RECIPES, "look-ahead": {"candidates": 3, "start_budget": 2}}


def build(backbone, graphs=True, candidates=1, **changes) -> Codec:
    base = {"steps": 6, "sigma_max": 3, "sigma_min": 0.2, "budget": 4, "vocab_size": 256}
    return Codec(Recipe(**{**base, **changes}).build(backbone), backbone, graphs, candidates=candidates)


class Counting(Shrink):
    """`Shrink` with a weight, which may move, and a count of its calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer("variance", torch.tensor(0.25))
        self.count = 0

    def denoise(self, y, sigma, cond=None):
        self.count += 1
        return y * (self.variance / (self.variance + sigma * sigma))


def named(backbone):
    backbone.fingerprint = "d" * 64
    return backbone


def tiny_convnet() -> PriorBackbone:
    torch.manual_seed(0)
    net = ConvDenoiser(backbones.load("gaussian-prior"), widths=(8, 8), blocks=1, embedding=8)  # type: ignore[arg-type]
    torch.nn.init.normal_(net.leave.weight, std=0.1)
    return named(PriorBackbone(net))


def tiny_pca() -> PCAPrior:
    vectors = torch.linalg.qr(torch.randn(192, 192, generator=torch.Generator().manual_seed(0)))[0]
    prior = PCAPrior((8, 8), 3, torch.zeros(192), torch.linspace(1, 0, 192), vectors)
    prior.fingerprint = "c" * 64  # a wrapper of a backbone without one has none
    return prior


def tiny_unet():
    diffusers = pytest.importorskip("diffusers")
    from noisebook.backbones.diffusers.nets import UNet2D
    from noisebook.backbones.families.ddpm import DDPM

    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = diffusers.UNet2DModel(sample_size=16, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **kinds)
    levels = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64).neg().add(1).cumprod(0).tolist()
    backbone = DDPM(UNet2D(unet.eval(), {}), levels, "epsilon")
    backbone.multiple = 8
    return named(backbone)


def tiny_cod():
    config = CodConfig(hidden=64, heads=2, blocks=3, cond_blocks=2, hidden_x=8, ds=8, width=32, cell=4)
    backbone = CoD(CodNet(config).eval().requires_grad_(False))
    backbone.fingerprint = "c" * 64
    return backbone


class Codes(Counting):
    """A network of latents of 4 channels."""

    channels = 4

    def _accelerate(self, dtype, channels_last, compile):
        pass


def tiny_latent(autoencoder, factor):
    torch.manual_seed(0)
    latent = Latent(Codes(), autoencoder().eval().requires_grad_(False), factor=factor)
    return named(latent.accelerate("bfloat16", channels_last=True))


def diffusers_autoencoder(kind, **options):
    diffusers = pytest.importorskip("diffusers")
    return DiffusersAutoencoder(getattr(diffusers, kind)(**options))


KL = {
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
TINY = {f"{half}_block_out_channels": (8, 8) for half in ("encoder", "decoder")}
TINY |= {f"num_{half}_blocks": (1, 1) for half in ("encoder", "decoder")}
LATENTS = {
    "taesd": lambda: tiny_latent(lambda: TinyAutoencoder(4, pooled=True), 8),
    "AutoencoderKL": lambda: tiny_latent(lambda: diffusers_autoencoder("AutoencoderKL", **KL), 2),
    "AutoencoderTiny": lambda: tiny_latent(lambda: diffusers_autoencoder("AutoencoderTiny", **TINY), 2),
    "VQModel": lambda: tiny_latent(lambda: diffusers_autoencoder("VQModel", **KL), 2),
}
BACKBONES = {
    **LATENTS,
    "shrink": Counting,
    "convnet": tiny_convnet,
    "spectrum": lambda: backbones.load("gaussian-prior"),
    "tiled pca": lambda: Tiled(tiny_pca()),
    "diffusers": tiny_unet,
    "cod": tiny_cod,
}


# ---- nothing between host and device ------------------------------------------------------------------------------------
def assert_cores_stay_on_the_device(backbone, height, width, **changes):
    """Runs the cores on tensors without values, twice as a recording is: the first call may fill caches."""
    codec = build(backbone.to("meta"), **changes)
    stream = codec.stream(height, width)
    payload = -(-sum(n * (v.bit_length() - 1) for n, v, *_ in stream.runs) // 8)
    packs = codec.rule.fixed_length  # else payloads are coded on the host, after all
    inputs = {
        "uint8": torch.empty(2, 3, height, width, dtype=torch.uint8, device="meta"),
        "float": torch.empty(2, 3, height, width, device="meta"),
        "tokens": torch.empty(2, stream.length, dtype=torch.int64, device="meta"),
        "payload": torch.empty(2, payload, dtype=torch.uint8, device="meta"),
    }

    @torch.no_grad()
    def run():
        encoded = encode(codec.parts, codec.candidates, stream, True, False, inputs["uint8"])
        encode(codec.parts, codec.candidates, stream, False, packs, inputs["float"])
        decoded = decode(codec.parts, stream, inputs["tokens"])
        decode(codec.parts, stream, inputs["payload"] if packs else inputs["tokens"])
        return encoded, decoded

    run()
    with fake_cuda.no_host():
        (status, tokens, images), (valid, decoded) = run()
    assert status.shape == (2 + sum(some.step_index != StepIndex.CONDITION for some in stream.segments),)
    assert tokens.shape == (2, stream.length)
    assert images.shape == decoded.shape == (2, 3, height, width)
    assert images.dtype == torch.float32
    assert valid.shape == ()


@pytest.mark.parametrize("changes", [{"condition": "first", "solver": "ab2"}, {"condition": "only"}], ids=["first", "only"])
def test_a_condition_never_meets_the_host(changes, monkeypatch):
    fake_cuda.plain_codebook(monkeypatch)
    backbone = tiny_cod()
    backbone.guidance = 3.0
    assert_cores_stay_on_the_device(backbone, 30, 41, **changes)


@pytest.mark.parametrize("case", CASES)
def test_cores_of_encode_and_decode_never_meet_the_host(case, monkeypatch):
    fake_cuda.plain_codebook(monkeypatch)
    assert_cores_stay_on_the_device(Counting(), 17, 40, **CASES[case])


@pytest.mark.parametrize(("rule", "kind", "steps"), [("bins", "independent", 3), ("poisson", "hadamard", 66)])
def test_wrappers_of_kernels_never_meet_the_host(rule, kind, steps, monkeypatch):
    """Of rule `poisson` also in more steps than any cache holds."""
    pytest.importorskip("triton")
    fake_cuda.triton_without_launches(monkeypatch)
    assert_cores_stay_on_the_device(Counting(), 17, 40, rule=rule, codebook=kind, steps=steps, budget=32)


@pytest.mark.parametrize("kind", ["hadamard", "independent"])
def test_launches_of_rule_poisson_are_as_many_for_a_batch_as_for_one_image(kind, monkeypatch):
    """All chunks of all images together: a search, a noise, and what is drawn for both; 99 chunks of two sizes."""
    pytest.importorskip("triton")
    launched = fake_cuda.triton_without_launches(monkeypatch)
    rule = Poisson(Codebook(kind, 1 << 17, 7))
    drawn = ["words_kernel", "places_kernel"]
    search = ["transform_kernel", *(["quantise_kernel"] if kind == "independent" else []), "search_kernel", "unpack_kernel"]
    for batch in (1, 32):
        state = torch.empty(batch, 1, 16384, device="meta")
        tokens = rule.select(state, 1378, 3, 0.5, 0.4)
        assert tokens.shape == (batch, 99)
        rule.backtrace(state, state, tokens, 1378, 3, 0.5, 0.4)
        assert launched == [*drawn, "sums_kernel", "bias_kernel", *search, *drawn, "noise_kernel"]
        launched.clear()


@pytest.mark.parametrize("name", BACKBONES)
def test_no_backbone_meets_the_host(name, monkeypatch):
    fake_cuda.plain_codebook(monkeypatch)
    assert_cores_stay_on_the_device(BACKBONES[name](), 16, 24)


@pytest.mark.parametrize("name", ["taesd", "AutoencoderKL"])
def test_no_tile_or_slice_of_an_autoencoder_meets_the_host(name, monkeypatch):
    fake_cuda.plain_codebook(monkeypatch)
    for constant, value in (("MOST", 1 << 12), ("WHOLE", 1 << 12), ("TILE", 64), ("OVERLAP", 16)):
        monkeypatch.setattr(pieces, constant, value)
    assert_cores_stay_on_the_device(LATENTS[name](), 64, 104)  # two tiles, each in two slices


SINS = {
    "item": lambda y: y.sum().item(),
    "float()": lambda y: float(y.sum()),
    "if": lambda y: 1 if y.sum() > 0 else 0,
    "tolist": lambda y: y.tolist(),
    "numpy": lambda y: y.numpy(),
    "cpu": lambda y: y.cpu(),
    "nonzero": lambda y: torch.nonzero(y),
    "mask": lambda y: y[y > 0],
    "equal": lambda y: torch.equal(y, y),
    "tensor": lambda y: y * torch.tensor(0.5, device=y.device),
    "tensor on the host": lambda y: y * torch.tensor(0.5),
    "new_tensor": lambda y: y * y.new_tensor(0.5),
    "copy": lambda y: y + torch.ones(1).to(y.device),
    "index from the host": lambda y: y[torch.arange(1)],
}


@pytest.mark.parametrize("sin", SINS)
def test_the_guard_sees_every_way_to_the_host(sin):
    y = torch.zeros(1, device="meta")
    with pytest.raises(Exception, match=r"host|meta|read|data"), fake_cuda.no_host():
        SINS[sin](y)


# ---- recording and replaying --------------------------------------------------------------------------------------------
@pytest.fixture
def cuda(monkeypatch):
    fake_cuda.install(monkeypatch)
    fake_cuda.plain_codebook(monkeypatch)


@pytest.mark.parametrize("case", CASES)
def test_replay_is_the_plain_call_for_fresh_images(case, cuda, fresh):
    backbone = Counting()
    codec, plain = build(backbone, **CASES[case]), build(Counting(), graphs=False, **CASES[case])
    for batch in (2, 2, 2, 1, 1, 2):  # five graphs for each: those of batch 2 are recorded, replayed twice, pushed out
        images = random_images(fresh, batch, 17, 40)
        tokens = codec.encode(images)
        assert torch.equal(tokens, plain.encode(images))
        assert torch.equal(codec.encode_packed(images), plain.encode_packed(images))
        for got, wanted in zip(codec.reconstruct(images), plain.reconstruct(images), strict=True):
            assert torch.equal(got, wanted)
        decoded = plain.decode(tokens, (17, 40))
        assert torch.equal(codec.decode(tokens, (17, 40)), decoded)
        assert torch.equal(codec.decode_packed(codec.encode_packed(images), (17, 40)), decoded)
    calls = backbone.count
    assert len(codec.graphs) == 8
    codec.decode_packed(codec.encode_packed(images), (17, 40))
    assert backbone.count == calls


@pytest.mark.filterwarnings("error:the work cannot be recorded")
@pytest.mark.parametrize("steps", [4, 66])
def test_rule_poisson_is_one_graph_however_many_steps(steps, cuda, fresh):
    changes = {"rule": "poisson", "budget": 20, "vocab_size": 512, "steps": steps}
    backbone = Counting()
    codec, plain = build(backbone, **changes), build(Counting(), graphs=False, **changes)
    calls = []
    for _ in range(2):
        images = random_images(fresh, 1, 9, 14)
        tokens, predicted = codec.reconstruct(images)
        assert torch.equal(tokens, plain.encode(images))
        assert tokens.unique().numel() > 1
        assert torch.equal(codec.decode(tokens, (9, 14)), predicted)
        assert torch.equal(plain.decode(tokens, (9, 14)), predicted)
        runs = codec.stream(9, 14).runs
        assert codec.encode_packed(images)[0].numpy().tobytes() == container.pack(tokens[0].numpy(), runs)
        calls.append(backbone.count)
    assert len(codec.graphs) == 3
    assert calls[0] == calls[1], "the second images are replayed"


@pytest.mark.parametrize("name", ["convnet", "spectrum", "tiled pca", "taesd", "AutoencoderKL"])
def test_replay_of_real_backbones(name, cuda, fresh):
    codec, plain = build(BACKBONES[name]()), build(BACKBONES[name](), graphs=False)
    for _ in range(3):
        images = random_images(fresh, 2, 16, 24)
        tokens, decoded = codec.reconstruct(images)
        assert torch.equal(tokens, plain.encode(images))
        assert torch.equal(decoded, plain.decode(tokens, (16, 24)))
    assert len(codec.graphs) == 1


def test_of_a_graph_only_the_end_is_reported_and_listening_makes_no_graph_of_its_own(cuda, fresh):
    few = {"steps": 1, "budget": 1, "vocab_size": 16}
    codec, images, heard = build(Shrink(), **few), random_images(fresh, 1, 4, 4), []

    def progress(done, total):
        heard.append((done, total))

    for _ in range(2):  # the first records, which runs the network three times
        heard.clear()
        tokens = codec.encode(images, progress=progress)
        codec.decode(tokens, (4, 4), progress=progress)
        assert heard == [(0, 1), (1, 1), (0, 2), (2, 2)]
    assert torch.equal(codec.encode(images), tokens)
    assert len(codec.graphs) == 2
    heard.clear()
    build(Shrink(), graphs=False, **few).decode(tokens, (4, 4), progress=progress)
    assert heard == [(0, 2), (1, 2), (2, 2)]


def test_results_are_the_callers_own_and_inputs_are_copied(cuda, fresh):
    codec = build(Counting())
    one, two = (random_images(fresh, 2, 16, 16) for _ in range(2))
    first = codec.encode(one)
    kept = first.clone()
    second = codec.encode(two)
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)
    one.copy_(two)
    assert torch.equal(codec.encode(one), second)
    second.zero_()
    assert torch.equal(codec.encode(one), codec.encode(two))
    assert codec.encode(two).any()


def test_every_shape_type_and_verb_has_a_graph_of_its_own_and_weights_that_move_make_new_ones(cuda, fresh):
    backbone = Counting()
    codec = build(backbone)
    images = random_images(fresh, 2, 16, 24)
    tokens = codec.encode(images)
    seen = [len(codec.graphs)]
    for call in (
        lambda: codec.encode(images[:1]),
        lambda: codec.encode(images.transpose(2, 3)),
        lambda: codec.encode(images / 127.5 - 1),
        lambda: codec.encode_packed(images),
        lambda: codec.reconstruct(images),
        lambda: codec.decode(tokens, (16, 24)),
    ):
        for _ in range(2):
            call()
        seen.append(len(codec.graphs))
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    backbone.to(torch.float32)
    backbone.variance.fill_(0.1)
    moved = codec.encode(images)
    assert len(codec.graphs) == 8
    assert not torch.equal(moved, tokens)
    backbone.variance.fill_(0.25)  # weights changed in place are seen by a replay
    assert torch.equal(codec.encode(images), tokens)
    assert len(codec.graphs) == 8


def test_the_graphs_used_last_are_kept(cuda):
    calls = []

    def double(x):
        calls.append(len(x))
        return (2 * x,)

    graphs = Graphs(size=2)
    for length in (1, 2, 1, 3, 1, 3, 2):
        x = torch.full((length,), float(length))
        assert torch.equal(graphs(double, (), (x,))[0], 2 * x)
        assert len(graphs) <= 2
    assert calls == [1] * 3 + [2] * 3 + [3] * 3 + [2] * 3  # twice to warm up, once to record; 2 was dropped for 3


def test_other_keys_are_other_functions(cuda):
    graphs, x = Graphs(), torch.ones(3)
    for _ in range(2):
        assert torch.equal(graphs(lambda t: (t + 1,), (), (x,))[0], x + 1)
        assert torch.equal(graphs(lambda t: (t - 1,), (), (x,))[0], x - 1)


@pytest.mark.quick
def test_a_key_is_made_of_the_call_itself(cuda):
    """Whatever a function is called with, a replay gives what the call gives: calls that differ in the function, in any
    argument, in the weights' version, or in a tensor's shape or dtype have recordings of their own."""
    version = [0]

    def scaled(factor, offset, names, x):
        return (factor * x + offset + len(names) + version[0],)

    def shifted(factor, offset, names, x):
        return (x - offset,)

    graphs = Graphs(version=lambda: version[0], size=1000)
    arguments = list(itertools.product((1, 2), (0.0, 0.5), ((), ("a",), ("a", "b"))))
    tensors = [torch.ones(2), torch.ones(3), torch.ones(2, dtype=torch.float64)]
    seen = 0
    for version[0] in (0, 1):
        for _ in range(2):  # recorded, then replayed
            for function, given, x in itertools.product((scaled, shifted), arguments, tensors):
                (out,) = graphs(function, given, (x,))
                assert torch.equal(out, function(*given, x)[0])
                assert out.dtype == x.dtype
        seen += 2 * len(arguments) * len(tensors)
        assert len(graphs) == seen


@pytest.mark.quick
def test_a_codec_whose_parts_change_does_not_replay_the_old_ones(cuda, fresh):
    """The rule, the candidates and the specification are arguments of the call: nobody has to remember a key."""
    images, codec, plain = random_images(fresh, 1, 16, 16), build(Counting()), build(Counting(), graphs=False)
    seen = [codec.encode(images)]
    for name, value in (
        ("rule", dataclasses.replace(codec.rule, book=codec.rule.book.with_vocab_size(16))),
        ("candidates", 3),
        ("spec", dataclasses.replace(codec.spec, seed=7)),
    ):
        for one in (codec, plain):
            setattr(one, name, value)
        seen.append(codec.encode(images))
        assert torch.equal(seen[-1], plain.encode(images))
        assert name == "candidates" or not torch.equal(seen[-1], seen[-2])
    assert len(codec.graphs) == 4


def test_calls_inside_and_outside_of_inference_mode_share_a_graph(cuda, fresh):
    codec = build(Counting())
    images = random_images(fresh, 1, 16, 16)
    with torch.inference_mode():
        inside = codec.encode(images.clone())
    outside = codec.encode(images)
    with torch.inference_mode():
        again = codec.encode(images.clone())
    assert torch.equal(inside, outside)
    assert torch.equal(again, outside)
    assert len(codec.graphs) == 1
    assert not inside.is_inference()


def test_without_graphs_work_is_called_plainly(cuda, fresh):
    images = random_images(fresh, 1, 16, 16)
    backbone = Counting()
    for codec in (build(backbone, graphs=False), build(backbone)):
        codec.graphs.enabled = False
        codec.encode(images)
        assert len(codec.graphs) == 0
    backbone.capturable = False
    codec = build(backbone)
    codec.encode(images)
    assert len(codec.graphs) == 0
    assert not build(Tiled(_sized(backbone))).graphs.enabled


def _sized(backbone):
    backbone.size = (16, 16)
    return backbone


def test_cpu_tensors_are_called_plainly(fresh):
    codec = build(Counting())
    codec.encode(random_images(fresh, 1, 16, 16))
    assert codec.graphs.enabled
    assert len(codec.graphs) == 0


def test_work_that_cannot_be_recorded_falls_back_with_one_warning(cuda, fresh):
    class Reads(Counting):
        def denoise(self, y, sigma, cond=None):
            return super().denoise(y, sigma) if y.sum().item() else y

    images = random_images(fresh, 2, 16, 16)
    codec = build(Reads())
    wanted = build(Counting(), graphs=False).encode(images)
    with pytest.warns(RuntimeWarning, match="cannot be recorded as a CUDA graph.*not permitted") as caught:
        assert torch.equal(codec.encode(images), wanted)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(codec.encode(images), wanted)
        codec.encode(images[:1])
    assert len(codec.graphs) == 0


def test_errors_of_the_work_itself_go_to_the_caller(cuda, fresh):
    class Broken(Counting):
        def denoise(self, y, sigma, cond=None):
            raise ZeroDivisionError

    codec = build(Broken())
    with pytest.raises(ZeroDivisionError):
        codec.encode(random_images(fresh, 1, 16, 16))
    assert codec.graphs.enabled


def test_bad_values_are_refused_after_a_replay_as_well(cuda, fresh):
    codec = build(Counting())
    good = random_images(fresh, 1, 16, 16).float() / 127.5 - 1
    tokens, payload = codec.encode(good), codec.encode_packed(good)
    codec.decode(tokens, (16, 16))
    codec.decode_packed(payload, (16, 16))
    graphs = len(codec.graphs)
    for value in (1.1, -2.0, float("nan"), float("inf")):
        bad = good.clone()
        bad[0, 1, 2, 3] = value
        with pytest.raises(ImageError, match=r"finite|are from"):
            codec.encode(bad)
    for bad in (tokens - 1000, tokens + 1000):
        with pytest.raises(CodecMismatchError):
            codec.decode(bad, (16, 16))
    with pytest.raises(FormatError):
        codec.decode_packed(payload[:, 1:], (16, 16))
    assert torch.equal(codec.encode(good), tokens)
    assert len(codec.graphs) == graphs
    codec.backbone.variance.fill_(float("nan"))
    with pytest.raises(ImageError, match="not finite"):
        codec.encode(good)


def test_constants_that_a_graph_was_recorded_with_outlive_the_cache():
    @graph_cached(1)
    def ramp(n):
        return torch.arange(n)

    assert ramp(3) is ramp(3)
    with holding() as held:
        ramp(3)
    alive = weakref.ref(ramp(3))
    assert held[0] is ramp(3)
    ramp(4)
    gc.collect()
    assert alive() is not None
    held.clear()
    gc.collect()
    assert alive() is None


def test_constants_first_made_in_inference_mode_are_normal_tensors():
    @graph_cached()
    def ones(n):
        return torch.ones(n)

    with torch.inference_mode():
        ones(2)
    assert not ones(2).is_inference()


def test_a_recording_holds_the_constants_of_its_backbone(cuda, fresh):
    codec = build(tiny_convnet())
    codec.encode(random_images(fresh, 1, 16, 24))
    (recording,) = codec.graphs._recorded.values()
    sizes = {tuple(t.shape) for t in recording.held if isinstance(t, torch.Tensor)}
    assert {(16, 16), (24, 24), (1, 3 * 16 * 24)} <= sizes  # two cosine transforms and the start


# ---- ranges -------------------------------------------------------------------------------------------------------------
def test_every_stage_is_a_range(monkeypatch, shrink, fresh):
    seen, depth = [], []

    class Annotate:
        def __init__(self, name, domain):
            assert domain == "noisebook"
            self.name = name

        def __enter__(self):
            seen.append((len(depth), self.name))
            depth.append(self.name)

        def __exit__(self, *_):
            assert depth.pop() == self.name

    monkeypatch.setattr(stages, "_annotate", Annotate)
    codec = build(shrink, steps=2, start_budget=1, start_vocab_size=256)
    payload = codec.encode_packed(random_images(fresh, 1, 16, 16))
    step = [(1, "network"), (1, "select"), (1, "backtrace")]
    assert seen == [(0, "encode"), (1, "start"), (2, "select"), *step, *step, (1, "pack")]
    seen.clear()
    codec.decode_packed(payload, (16, 16))
    step = [(1, "network"), (1, "backtrace")]
    assert seen == [(0, "decode"), (1, "pack"), (1, "start"), *step, *step, (1, "solve"), (2, "network")]


def test_a_replay_is_a_range(monkeypatch, cuda, fresh):
    names = []
    monkeypatch.setattr("noisebook.runtime.cuda_graphs.stage", lambda name: names.append(name) or stages._nothing)
    codec = build(Counting())
    codec.encode(random_images(fresh, 1, 16, 16))
    assert names == ["replay"]


def test_without_nvtx_a_stage_is_nothing(monkeypatch):
    monkeypatch.setattr(stages, "_annotate", None)
    assert stages.stage("encode") is stages.stage("decode")
