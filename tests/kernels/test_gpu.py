"""The codec on a GPU: graphs replay what plain calls give, nothing waits for the host, tokens travel to the CPU."""

import copy
import json
import math
import warnings

import numpy as np
import pytest
import torch

import noisebook
from common import RECIPES, Shrink, random_images, realism_file
from noisebook import CodecMismatchError, FormatError, ImageError, backbones
from noisebook.backbones.cod.cod import CoD
from noisebook.backbones.cod.nets import CodConfig, CodNet
from noisebook.backbones.nets.autoencoders import DiffusersAutoencoder, TinyAutoencoder
from noisebook.backbones.wrappers import pieces
from noisebook.backbones.wrappers.latent import Latent
from noisebook.cli import main as cli
from noisebook.codebook import Codebook, reference, refining
from noisebook.codec.codec import Codec
from noisebook.codec.decoder import decode
from noisebook.codec.encoder import encode
from noisebook.format import container
from noisebook.images import io as images
from noisebook.images.judges.catalogue import chosen
from noisebook.images.judges.judge import Judge
from noisebook.spec.presets import Recipe
from refining_kit import near_ties

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:quality stalls"),
    pytest.mark.filterwarnings("error:the work cannot be recorded"),
]

CASES = {
    **RECIPES,
    "independent": {"codebook": "independent", "vocab_size": 128},
    "a vocabulary that is no power of two": {"codebook": "independent", "vocab_size": 66},
    "many codewords": {"budget": 1, "vocab_size": 1 << 21},
    "look-ahead": {"candidates": 3, "start_budget": 2},
}
BACKBONES = ("shrink", "photo", "gaussian-prior")


def network(name="shrink"):
    if name == "shrink":
        backbone = Shrink()
        backbone.register_buffer("anchor", torch.zeros(1))  # a tensor, so that it has a device
        return backbone.cuda()
    return backbones.load(name, "cuda")


def build(backbone, graphs=True, candidates=1, **changes) -> Codec:
    base = {"steps": 6, "sigma_max": 3, "sigma_min": 0.2, "budget": 4, "vocab_size": 256}
    return Codec(Recipe(**{**base, **changes}).build(backbone), backbone, graphs, effort=0, candidates=candidates)


def psnr(a, b) -> float:
    """Of images in [-1, 1], in dB."""
    error = (a.cpu() - b.cpu()).double().square().mean().item()
    return 10 * math.log10(4 / error) if error else math.inf


def assert_same(codec: Codec, plain: Codec, x: torch.Tensor) -> None:
    """All verbs of two codecs give the same bits for images x."""
    size = (x.shape[2], x.shape[3])
    tokens, payload, (again, predicted) = codec.encode(x), codec.encode_packed(x), codec.reconstruct(x)
    assert torch.equal(tokens, plain.encode(x))
    assert torch.equal(tokens, again)
    runs = plain.stream(*size).runs
    assert [row.cpu().numpy().tobytes() for row in payload] == [container.pack(row.cpu().numpy(), runs) for row in tokens]
    decoded = codec.decode(tokens, size)
    assert torch.equal(decoded, predicted)
    assert torch.equal(decoded, plain.decode(tokens, size))
    assert torch.equal(decoded, codec.decode_packed(payload, size))


@pytest.mark.parametrize("case", CASES)
def test_replay_is_the_plain_call_bit_for_bit(case, fresh):
    codec, plain = build(network(), **CASES[case]), build(network(), graphs=False, **CASES[case])
    for batch in (1, 1, 3, 17, 3, 3):
        assert_same(codec, plain, random_images(fresh, batch, 17, 40))
    assert len(codec.graphs) > 0
    assert len(plain.graphs) == 0


@pytest.mark.parametrize("name", BACKBONES)
def test_replay_of_every_shipped_backbone(name, fresh):
    codec, plain = build(network(name)), build(network(name), graphs=False)
    for height, width in ((64, 96), (48, 48), (64, 96), (64, 96)):
        assert_same(codec, plain, random_images(fresh, 2, height, width))


@pytest.mark.parametrize(
    "changes",
    [{"condition": "first"}, {"condition": "first", "solver": "ab2"}, {"condition": "only"}],
    ids=["mean", "ab2", "only"],
)
def test_replay_under_a_condition(changes, fresh):
    """CoD's own tokens before the others, or alone, with guidance in the finish."""
    torch.manual_seed(0)
    config = CodConfig(hidden=64, heads=2, blocks=3, cond_blocks=2, hidden_x=8, ds=8, width=32, cell=4)
    backbone = CoD(CodNet(config).eval().requires_grad_(False), guidance=3.0).cuda()
    backbone.name, backbone.fingerprint = "cod", "0" * 64
    codec, plain = build(backbone, **changes), build(backbone, graphs=False, **changes)
    for height, width in ((32, 48), (48, 32), (32, 48), (30, 41)):
        assert_same(codec, plain, random_images(fresh, 2, height, width))
    assert len(codec.graphs) > 0


def test_auto_is_bfloat16_from_compute_capability_8_on():
    fast = torch.cuda.get_device_capability() >= (8, 0)
    codec = noisebook.load("photo", device="cuda", steps=2)
    assert codec.dtype == ("bfloat16" if fast else "float32")
    assert noisebook.load("photo", device="cuda", steps=2, dtype="float32").dtype == "float32"


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"dtype": "float32", "channels_last": True}, {"dtype": "bfloat16", "compile": True}]
)
def test_replay_of_an_accelerated_network(options, fresh):
    codec, plain = (noisebook.load("photo", device="cuda", steps=6, graphs=g, **options) for g in (True, False))
    for _ in range(3):
        assert_same(codec, plain, random_images(fresh, 2, 64, 96))
    torch._dynamo.reset()


def test_a_folder_goes_straight_to_the_gpu_in_its_dtype(tmp_path):
    """The same weights as from float32 on the host, and no float32 copy of them on the device."""
    diffusers = pytest.importorskip("diffusers")
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    diffusers.UNet2DModel(sample_size=16, block_out_channels=(64, 128), **kinds).half().save_pretrained(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    slow = backbones.load(tmp_path, "cpu").accelerate("bfloat16")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fast = backbones.load(tmp_path, "cuda", accelerated={"dtype": "bfloat16"})
    weights = sum(p.numel() for p in slow.parameters())
    assert torch.cuda.max_memory_allocated() - before < 3 * weights  # 2 bytes each; float32 has 4
    for here, there in zip(slow.parameters(), fast.parameters(), strict=True):
        assert (there.device.type, there.dtype) == ("cuda", torch.bfloat16)
        assert torch.equal(here, there.cpu())
    assert fast.answers_to(slow.fingerprint)


class Codes(Shrink):
    """A network of latents of 4 channels, with a weight that says where it lives."""

    channels = 4

    def _accelerate(self, dtype, channels_last, compile):
        pass


@pytest.mark.parametrize("kind", ["taesd", "AutoencoderKL"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "bfloat16", "channels_last": True},
        {"dtype": "bfloat16-network", "compile": True},
        {"dtype": "bfloat16", "channels_last": True, "compile": True},
    ],
    ids=["plain", "bfloat16", "float32 compiled", "bfloat16 compiled"],
)
def test_replay_of_an_accelerated_autoencoder(options, kind, fresh, monkeypatch):
    """One graph with the walk, of one call, of slices and of tiles; what bfloat16 gives is near what float32 does."""
    torch.manual_seed(0)
    autoencoder, factor = TinyAutoencoder(4, pooled=True), 8
    if kind == "AutoencoderKL":
        diffusers = pytest.importorskip("diffusers")
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        vae = diffusers.AutoencoderKL(block_out_channels=(32, 64), latent_channels=4, norm_num_groups=8, **blocks)
        autoencoder, factor = DiffusersAutoencoder(vae), 2

    def latent():
        model = Latent(Codes(), copy.deepcopy(autoencoder), factor=factor)
        model.fingerprint = "e" * 64
        return model.cuda().eval().requires_grad_(False)

    for constant, value in (("MOST", 1 << 14), ("TILE", 128), ("OVERLAP", 32)):
        monkeypatch.setattr(pieces, constant, value)
    fast, reference = latent().accelerate(**options), latent()
    codec, plain = build(fast), build(fast, graphs=False)
    for batch, height, width in ((2, 64, 96), (5, 64, 96), (1, 160, 208), (1, 160, 208)):
        x = random_images(fresh, batch, height, width)
        assert_same(codec, plain, x)
        y = x.cuda() / 127.5 - 1
        z = reference.encode(y)
        for got, wanted in ((fast.encode(y), z), (fast.decode(z), reference.decode(z))):
            assert got.dtype == torch.float32
            assert (got - wanted).norm() < 0.05 * wanted.norm()
    assert len(codec.graphs) > 0
    torch._dynamo.reset()


def test_more_shapes_than_graphs_are_kept(fresh):
    codec, plain = build(network("photo")), build(network("photo"), graphs=False)
    for width in [*range(32, 32 * 12, 32), 32, 64]:  # their cosine transforms leave the cache as well
        for _ in range(2):
            x = random_images(fresh, 1, 32, width)
            assert torch.equal(codec.encode(x), plain.encode(x))
    assert len(codec.graphs) == codec.graphs.size


def test_constants_that_left_their_cache_are_still_there_for_a_graph(fresh):
    """A graph of one size, then plain work on many: its constants leave the cache, but not the memory."""
    codec, plain = build(network("gaussian-prior")), build(network("gaussian-prior"), graphs=False)
    codec.encode(random_images(fresh, 1, 40, 56))
    for width in range(64, 64 * 14, 64):
        plain.encode(random_images(fresh, 1, 24, width))
    torch.cuda.empty_cache()
    trash = [torch.full((56, 56), float("nan"), device="cuda") for _ in range(64)]
    x = random_images(fresh, 1, 40, 56)
    assert torch.equal(codec.encode(x), plain.encode(x))
    del trash


def test_weights_that_move_make_new_graphs(fresh):
    backbone = network("photo")
    codec, plain = build(backbone), build(network("photo"), graphs=False)
    x = random_images(fresh, 2, 32, 32)
    wanted = plain.encode(x)
    assert torch.equal(codec.encode(x), wanted)
    backbone.cpu()
    trash = [torch.full_like(p, float("nan"), device="cuda") for p in backbone.parameters()]
    backbone.cuda()
    assert torch.equal(codec.encode(x), wanted)
    del trash


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("kind", ["hadamard", "independent"])
def test_cores_do_not_wait_for_the_host(kind, name, fresh):
    """torch raises at every operation that synchronises; run plainly, after a first call that fills the caches."""
    codec = build(network(name), graphs=False, codebook=kind, start_budget=2, start_vocab_size=256)
    stream = codec.stream(32, 48)
    x = random_images(fresh, 2, 32, 48).cuda()
    tokens, payload = codec.encode(x), codec.encode_packed(x)
    codec.decode(tokens, (32, 48))
    codec.decode_packed(payload, (32, 48))
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        with torch.no_grad():
            status, again, _ = encode(codec.parts, 1, stream, True, False, x)
            _, packed = encode(codec.parts, 1, stream, False, True, x)
            decode(codec.parts, stream, tokens)
            decode(codec.parts, stream, payload)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert status.is_cuda
    assert torch.equal(again, tokens)
    assert torch.equal(packed, payload)


def test_streams_and_inference_mode_share_a_graph(fresh):
    codec, plain = build(network("photo")), build(network("photo"), graphs=False)
    streams = [torch.cuda.Stream() for _ in range(3)]
    xs = [random_images(fresh, 4, 32, 32).cuda() for _ in range(9)]
    wanted = [plain.encode(x) for x in xs]
    torch.cuda.synchronize()
    got = []
    for i, x in enumerate(xs):
        with torch.cuda.stream(streams[i % 3]), torch.inference_mode(i % 2 == 1):
            got.append(codec.encode(x))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert len(codec.graphs) == 1


def test_bad_values_are_refused(fresh):
    codec = build(network())
    x = (random_images(fresh, 2, 16, 16).float() / 127.5 - 1).cuda()
    for _ in range(2):
        tokens, payload = codec.encode(x), codec.encode_packed(x)
        codec.decode(tokens, (16, 16))
        for value in (1.5, float("nan"), float("inf")):
            bad = x.clone()
            bad[1, 2, 3, 4] = value
            with pytest.raises(ImageError):
                codec.encode(bad)
        for bad in (tokens - 1000, tokens + (1 << 40)):
            with pytest.raises(CodecMismatchError):
                codec.decode(bad, (16, 16))
        with pytest.raises(FormatError):
            codec.decode_packed(payload[:, 1:], (16, 16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_of_a_gpu_decode_on_a_cpu(dtype, capsys):
    """Not bit for bit: the networks differ. How far apart the two decodes are is printed."""
    x = torch.from_numpy(images.sample("astronaut")[0:192, 150:406].copy()).permute(2, 0, 1)[None]
    there, here = noisebook.load("photo", device="cuda", dtype=dtype), noisebook.load("photo", dtype="float32")
    tokens, predicted = there.reconstruct(x)
    decoded = here.decode(tokens.cpu(), (192, 256))
    truth = x.float() / 127.5 - 1
    with capsys.disabled():
        print(f"\n  encoded on the GPU in {dtype}: {psnr(predicted, truth):.2f} dB decoded there,", end=" ")
        print(f"{psnr(decoded, truth):.2f} dB on the CPU; {psnr(decoded, predicted):.2f} dB between the two")
    assert psnr(decoded, predicted) > 35
    assert psnr(decoded, truth) > psnr(predicted, truth) - 0.5


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "top", "budget": 5},
        {"rule": "pursuit", "coefficient_bits": 2, "budget": 3},
        {"rule": "poisson", "budget": 40, "vocab_size": 512},
    ],
    ids=lambda r: r["rule"],
)
def test_other_rules_decode_on_a_cpu(rule, fresh):
    graphs = rule["rule"] != "pursuit"  # it looks at its residual on the host
    codec, there = build(network(), graphs, **rule), build(Shrink(), **rule)
    tokens, seen = codec.reconstruct(random_images(fresh, 2, 24, 40).cuda())
    assert torch.equal(codec.decode(tokens, (24, 40)), seen)
    assert psnr(there.decode(tokens.cpu(), (24, 40)), seen) > 60


def test_lost_tokens_are_skipped_as_on_a_cpu(fresh):
    codec, there = build(network()), build(Shrink())
    tokens = codec.encode(random_images(fresh, 2, 24, 40).cuda())
    lost = torch.from_numpy(fresh.random(tuple(tokens.shape)) < 0.2)
    seen = codec.decode(tokens, (24, 40), lost=lost)
    assert psnr(there.decode(tokens.cpu(), (24, 40), lost=lost), seen) > 60
    none = torch.zeros_like(lost)
    assert psnr(codec.decode(tokens, (24, 40), lost=none), codec.decode(tokens, (24, 40))) > 60


@pytest.mark.parametrize("kind", ["hadamard", "independent"])
@pytest.mark.parametrize("steps", [6, 70])
def test_rule_poisson_is_one_graph(steps, kind, fresh):
    """However many steps: as called plainly, which waits for nothing, and payloads are of the same tokens."""
    changes = {"rule": "poisson", "budget": 130, "vocab_size": 1 << 14, "codebook": kind, "steps": steps}
    codec, plain = build(network(), **changes), build(network(), graphs=False, **changes)
    stream = codec.stream(24, 40)
    for batch in (3, 3, 3):
        x = random_images(fresh, batch, 24, 40).cuda()
        tokens = codec.encode(x)
        assert torch.equal(tokens, plain.encode(x))
    assert len(codec.graphs) == 1
    decoded = codec.decode(tokens, (24, 40))
    assert torch.equal(decoded, plain.decode(tokens, (24, 40)))
    assert len(codec.graphs) == 2
    payload = codec.encode_packed(x[:1])
    row = codec.encode(x[:1])[0].cpu().numpy()
    assert payload[0].cpu().numpy().tobytes() == container.pack(row, stream.runs)
    assert len(codec.graphs) == 3
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        with torch.no_grad():
            _, again, seen = encode(codec.parts, 1, stream, True, False, x)
            decode(codec.parts, stream, tokens)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, tokens)
    assert torch.equal(seen, decoded)


@pytest.mark.parametrize("kind", ["hadamard", "independent"])
def test_rule_poisson_chooses_as_the_cpu_does(kind, fresh):
    """The same residual there and here: a tie may fall otherwise, other tokens are the same. z is the same, and so is a
    graph's work from one replay to the next."""
    budget, where = 1378, (3, 0.5, 0.4)  # 99 chunks, of two sizes
    there, here = (build(n, rule="poisson", vocab_size=1 << 17, codebook=kind).rule for n in (network(), Shrink()))
    residual = torch.from_numpy(fresh.standard_normal((2, 1, 4096)).astype("float32")) * 0.6
    tokens, wanted = there.select(residual.cuda(), budget, *where), here.select(residual, budget, *where)
    assert tokens.shape == wanted.shape == (2, 99)
    assert (tokens.cpu() == wanted).float().mean() > 0.97
    z = there.noise(tokens, (1, 4096), budget, 3)
    assert torch.equal(z.cpu(), here.noise(tokens.cpu(), (1, 4096), budget, 3))
    still, graph = residual.cuda(), torch.cuda.CUDAGraph()
    there.select(still, budget, *where)
    with torch.cuda.graph(graph):
        replayed = there.select(still, budget, *where)
    for given in (residual, residual.flip(0)):
        still.copy_(given)
        graph.replay()
        assert torch.equal(replayed, there.select(given.cuda(), budget, *where))


def test_both_devices_draw_the_same_noise(fresh):
    """With an elementwise backbone the two decodes differ by rounding alone, and the CPU's codewords are the GPU's."""
    there, here = build(network()), build(Shrink())
    tokens = torch.from_numpy(fresh.integers(0, 256, (3, 24)))
    assert (there.decode(tokens, (16, 24)).cpu() - here.decode(tokens, (16, 24))).abs().max() < 1e-5


def test_top_of_many_images(fresh, monkeypatch):
    """256 images, 64 of 2^18 atoms: by runs as by all keys, replayed as called, and what the definition says."""
    from noisebook_kernels import top

    where = (64, 4096, 64, 5, 2**63 + 9)
    x = torch.from_numpy(fresh.standard_normal((256, 1, 3072)).astype("float32")).cuda()
    x[1, 0, 1:] = 0  # a spike: scores tie
    x[2] = torch.from_numpy(fresh.integers(-8, 9, 3072)).cuda()  # exact scores
    tokens = top.hadamard_top(x, *where)
    assert torch.equal(tokens[2].cpu(), reference.hadamard_top(x[2].cpu(), *where))
    with monkeypatch.context() as patch:
        patch.setattr(top, "runs_pay", lambda *_: False)
        assert torch.equal(tokens, top.hadamard_top(x, *where))
    still, graph = x.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = top.hadamard_top(still, *where)
    for residual in (x, x.flip(0)):
        still.copy_(residual)
        graph.replay()
        assert torch.equal(replayed, top.hadamard_top(residual, *where))


@pytest.mark.parametrize(
    ("batch", "blocks", "d", "bins", "vocab_size"),
    [
        (1, 1, 16384, 64, 65536),  # latents
        (32, 1, 16384, 64, 65536),
        (8, 1, 3072, 64, 65536),  # CIFAR-10
        (2, 1, 65536, 256, 4096),
        (1, 1, 196608, 1024, 4096),  # photographs
        (2, 3, 2048, 2048, 16),
        (4, 2, 4096, 4, 1 << 20),
        (3, 1, 48, 2, 256),
    ],
)
def test_tokens_chosen_again(batch, blocks, d, bins, vocab_size, fresh):
    """As the definition says, as it does in torch over the other kernels, and as a graph replays."""
    from noisebook.codebook import triton

    book = Codebook("hadamard", vocab_size, int(fresh.integers(2**63)))
    where = ("hadamard", book.shape(bins, d), 5, book.seed)
    x = torch.from_numpy(fresh.standard_normal((2, batch, blocks, d)).astype("float32")).cuda()
    still, graph = x[0].clone(), torch.cuda.CUDAGraph()
    tokens = book.select(still, bins, 5)
    book.refined(still, tokens, 5)  # compiles
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        replayed = book.refined(still, book.select(still, bins, 5), 5)
    for residual in x:
        tokens = book.select(residual, bins, 5)
        chosen = book.refined(residual, tokens, 5)
        plain = refining.refined(triton.select, triton.noise, residual, tokens, *where)
        still.copy_(residual)
        graph.replay()
        assert torch.equal(replayed, chosen)
        same = (chosen == plain).all(-1)
        assert same.double().mean() >= 0.9 or batch < 10
        for u in range(blocks):
            of = [t[:2, u].cpu() for t in (residual, tokens, chosen, plain)]
            ties = sum(near_ties(of[0], of[1], again, where[1], where[2:], u) for again in of[2:])
            assert ties or same[:2, u].all()
            assert ties <= 2


def test_a_graph_holds_what_is_chosen_again(fresh):
    """Through the codec, with tokens dense enough that they are chosen again."""
    changes = {"budget": 16, "budget_last": 128}
    spec = Recipe(steps=6, sigma_max=3, sigma_min=0.2, vocab_size=256, **changes).build(network())
    codec, plain = (Codec(spec, network(), graphs=graphs, effort=2) for graphs in (True, False))
    once = Codec(spec, network(), graphs=False, effort=0)
    for batch in (1, 3, 3):
        x = random_images(fresh, batch, 17, 40)
        assert_same(codec, plain, x)
        assert not torch.equal(codec.encode(x), once.encode(x))
    assert len(codec.graphs) > 0


def test_files_of_a_gpu_are_files(tmp_path):
    """Through the command line: encoded and decoded with --device cuda, verified without a backbone."""
    from noisebook.cli.main import main

    out = str(tmp_path)
    assert main(["roundtrip", "--samples", "--device", "cuda", "-o", out]) == 0
    files = sorted(str(p) for p in tmp_path.glob("*.nbk"))
    assert len(files) == 3
    assert main(["verify", *files]) == 0
    assert main(["decode", *files, "--device", "cuda", "--dtype", "bfloat16", "-o", str(tmp_path / "b")]) == 0


def test_children_on_gpus_make_the_shards_of_one_process(tmp_path, fresh):
    """Two on one GPU where there is one only; and all that there are by default."""
    pytest.importorskip("pyarrow")
    from noisebook.datasets import CodecRecipe, tokenize

    (tmp_path / "in").mkdir()
    for i, x in enumerate(random_images(fresh, 24, 32, 32)):
        (tmp_path / f"in/{i:02d}.png").write_bytes(images.png_bytes(x.permute(1, 2, 0).numpy()))
    recipe = CodecRecipe(backbone="cifar10-flow", changes={"steps": 4, "budget": 4, "vocab_size": 256})
    shards = []
    for name in ("cuda:0", "cuda:0,cuda:0", "cuda"):
        tokenize(tmp_path / "in", tmp_path / name, codec=recipe, device=name, shard_size=4, batch_size=4)
        shards.append([path.read_bytes() for path in sorted((tmp_path / name / "shards").iterdir())])
    assert shards[0] == shards[1] == shards[2]


def test_work_that_cannot_be_recorded_falls_back(fresh):
    """Last in this file: what torch leaves behind after a recording that failed should disturb nothing."""

    class Reads(Shrink):
        def denoise(self, y, sigma, cond=None):
            return super().denoise(y, sigma) if y.sum().item() else y

    backbone = Reads()
    backbone.register_buffer("anchor", torch.zeros(1))
    codec, plain = build(backbone.cuda()), build(network(), graphs=False)
    before = torch.cuda.current_stream()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            x = random_images(fresh, 2, 16, 24)
            assert torch.equal(codec.encode(x), plain.encode(x))
    assert sum("cannot be recorded" in str(w.message) for w in caught) == 1
    assert torch.cuda.current_stream() == before
    assert_same(build(network()), plain, random_images(fresh, 2, 16, 24))  # and other codecs go on being recorded


def test_batches_that_are_copied_ahead_are_whole_when_the_codec_sees_them(fresh):
    """Many copies on a stream of their own, while the codec works on another: none is read before it is there."""
    pytest.importorskip("pyarrow")
    from noisebook.datasets.batches import Batch, on_device
    from noisebook.datasets.loader import ahead

    codec = build(network())
    given = [random_images(fresh, 8, 64, 64) for _ in range(12)]
    made = (Batch(0, [], x.pin_memory(), [], {}) for x in given)
    tokens = [codec.encode(batch.images_there()).cpu() for batch in ahead(on_device(made, codec.device), 2)]
    for x, found in zip(given, tokens, strict=True):
        assert torch.equal(found, codec.encode(x).cpu())


def test_a_judge_computes_there_what_it_computes_on_the_cpu(tmp_path):
    class Distance(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (self.conv(a) - self.conv(b)).abs().mean(dim=[1, 2, 3])

    class Features(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=[2, 3])

    for name, module in (("lpips", Distance()), ("frechet", Features())):
        torch.jit.script(module).save(str(tmp_path / f"{name}.pt"))
    networks = {name: [tmp_path / f"{name}.pt"] for name in ("lpips", "frechet")}
    a, b = images.sample("cat"), images.sample("cat")[:, ::-1].copy()
    there, here = (Judge(chosen("lpips,frechet", networks), networks, device, 64) for device in ("cuda", "cpu"))
    found, expected = there.summary([there(a, b)]), here.summary([here(a, b)])
    assert not there(a, b).remarks
    for key in ("lpips", "frechet"):
        assert found[key]["value"] == pytest.approx(expected[key]["value"], rel=1e-3)


@pytest.mark.parametrize("how", [{}, {"dtype": "bfloat16", "channels_last": True}], ids=["float32", "bfloat16"])
def test_the_realism_dial_replays_and_travels(how, tmp_path, fresh):
    """Each value of the dial is a graph of its own; the CPU makes the same picture but for rounding."""
    path = realism_file(tmp_path / "a.realism.safetensors", backbones.load("photo").fingerprint)
    graphs, plain = (noisebook.load("photo", device="cuda", graphs=on, realism_network=path, **how) for on in (True, False))
    images = random_images(fresh, 2, 70, 90)
    tokens = graphs.encode(images)
    for _ in range(2):
        shown = [graphs.decode(tokens, (70, 90), realism=r) for r in (0.0, 0.5, 1.0)]
    assert all(torch.equal(a, plain.decode(tokens, (70, 90), realism=r)) for a, r in zip(shown, (0, 0.5, 1), strict=True))
    assert torch.allclose(shown[1], (shown[0] + shown[2]) / 2, rtol=0, atol=1e-6)
    assert (shown[2] - shown[0]).abs().max() > 0.01
    on_cpu = noisebook.load("photo", realism_network=path).decode(tokens.cpu(), (70, 90), realism=1.0)
    assert psnr(on_cpu, shown[2]) > (35 if how else 50)


@pytest.mark.parametrize("objective", ["edm", "realism"])
def test_a_network_is_trained_there_and_goes_on(objective, tmp_path, fresh, capsys):
    """Images on the GPU as bytes, the network compiled, decodes made there; at the end it says its share of the chip."""
    np.savez(tmp_path / "data.npz", images=random_images(fresh, 40, 80, 96).permute(0, 2, 3, 1).numpy())
    layers = {f"features.{i}.weight": torch.randn(8, c, 3, 3) / 4 for i, c in ((0, 3), (3, 8), (6, 8))}
    torch.save(layers | {name.replace("weight", "bias"): torch.zeros(8) for name in layers}, tmp_path / "vgg.pth")
    more = {
        "edm": ["--sizes", "32", "64", "--random-sizes", "--shrink", "--compile"],
        "realism": ["--init", "photo", "--features", tmp_path / "vgg.pth", "--sizes", "64", "--pairs", "64"],
    }[objective]
    command = ["train", objective, tmp_path / "data.npz", "-o", tmp_path / "run", "--held-out", "8", "--device", "cuda"]
    lines = []
    for minutes in ("0.05", "0.1"):
        assert cli.main([*map(str, [*command, *more]), "--pixels", "16384", "--minutes", minutes]) == 0
        lines.append(json.loads(capsys.readouterr().err.strip().splitlines()[-1]))
        assert lines[-1]["pixels_per_second"] > 0
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert log[-1]["iteration"] > log[0]["iteration"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_backbone_is_checked_there(dtype, fresh):
    """The shipped network passes, timed after the device has finished, with the memory that its allocator counts."""
    x = torch.stack(
        [torch.from_numpy(images.sample(name)[:256, :256].copy()).permute(2, 0, 1) for name in ("coffee", "chelsea")]
    )
    result = noisebook.check("photo", x, device="cuda", dtype=dtype)
    assert result.ok, str(result)
    assert result.device.startswith("cuda")
    assert result.peak_bytes is not None
    assert result.peak_bytes > 1 << 20
    on_cpu = noisebook.check("photo", x, dtype="float32")
    for there, here in zip(result.levels, on_cpu.levels, strict=True):
        assert there.mse == pytest.approx(here.mse, rel=0.05)
        assert there.gaussian == pytest.approx(here.gaussian, rel=1e-3)
