"""What a run may hold: pictures, batches and what waits between workers and codec stay within --memory."""

import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common import TINY, random_images, tiny_backbone
from noisebook.cli.main import main
from noisebook.codec.codec import Codec
from noisebook.errors import SpecError
from noisebook.runtime.limits import Limits

pytest.importorskip("pyarrow")

from noisebook.datasets import CodecRecipe, TokenDataset, TokenizeBatch, memory, tokenize
from noisebook.datasets.batches import Batching, batches
from noisebook.datasets.decoding import Later, Picture, Request, answer_to, decode
from noisebook.datasets.loader import Workers
from noisebook.datasets.sources.base import Failure, File, Item
from noisebook.datasets.worker import Parcel, serve
from noisebook.errors import ImageError

CHANGES = {"steps": 4, "budget": 8, "budget_last": 8, "vocab_size": 256, "scale_pixels": 0, "start_budget": 0}
MIB = 1 << 20


@pytest.fixture
def net(tmp_path):
    return tiny_backbone(tmp_path / "tiny.safetensors")


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def folder(place, fresh, sizes):
    place.mkdir()
    for i, (height, width) in enumerate(sizes):
        image = random_images(fresh, 1, height, width)[0].permute(1, 2, 0).numpy()
        (place / f"{i:02d}.png").write_bytes(png(image))
    return place


def failures(out):
    return {f["key"]: f for entry in TokenDataset(out).ledgers for f in entry["failed"]}


def memory_for(pixels):
    """The memory with which a batch may have that many pixels."""
    return memory.needed(pixels, "cpu")


def test_the_share_of_a_batch_and_the_memory_it_needs_agree():
    for pixels in (1, 1000, 123_457, memory.LARGE_FROM):
        for device in ("cpu", "cuda"):
            limits = Limits(memory=memory.needed(pixels, device))
            assert memory.coded_pixels(limits, device) == pixels
            assert memory.coded_pixels(replace(limits, memory=limits.memory - 4096), device) < pixels


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("size", [(1, memory.LARGE_FROM), (1, memory.LARGE_FROM + 1), (3000, 4000), (12_500, 20_000)])
def test_a_picture_is_taken_from_the_memory_that_its_refusal_names(size, device):
    enough = memory.needed(size[0] * size[1], device)
    assert Batching(8, device=device, limits=Limits(memory=enough)).refusal(*size) is None
    refused = Batching(8, device=device, limits=Limits(memory=enough - 4096)).refusal(*size)
    assert refused.code == "too_large"
    assert memory.size_text(enough) in refused.message


@pytest.mark.parametrize("pixels", [1000, 12_000_000, 250_000_000])
def test_a_picture_is_decoded_from_the_memory_that_its_refusal_names(pixels):
    enough = memory.needed_to_decode(pixels)
    assert memory.decoded_pixels(Limits(memory=enough)) >= pixels
    assert memory.decoded_pixels(Limits(memory=enough - 4096)) < pixels
    assert enough <= memory.needed(pixels, "cpu")


def test_a_plan_has_a_bound_only_where_memory_asks_for_it():
    plenty, little = Limits(memory=memory_for(1 << 20)), Limits(memory=memory_for(1000))
    assert memory.batch_pixels(plenty, "cpu", 32, {(64, 64)}) is None
    assert memory.batch_pixels(little, "cpu", 32, {(10, 30)}) == 900
    assert memory.batch_pixels(little, "cpu", 32, {(100, 30)}) == 3000  # one image; it fails, or a later run has more memory
    assert memory.batch_pixels(little, "cpu", 32, {(10, 30), (5, 5)}) == 512
    assert memory.batch_pixels(little, "cpu", 32, None) == 512
    assert memory.batch_pixels(replace(little, pixels=30), "cpu", 32, None) is None


def test_a_batch_is_bounded_by_its_pixels_and_the_plan_says_so(tmp_path, fresh, net, monkeypatch):
    """Also a resumed run with more memory makes the same batches, and other plans are as ever."""
    source, recipe = folder(tmp_path / "in", fresh, [(16, 16)] * 7), CodecRecipe(backbone=net, changes=CHANGES)
    coded, encode = [], Codec.encode
    monkeypatch.setattr(Codec, "encode", lambda self, images: coded.append(len(images)) or encode(self, images))
    few = Limits(memory=memory_for(3 * 256 + 100))
    tokenize(source, tmp_path / "a", codec=recipe, limits=few)
    assert coded == [3, 3, 1]
    assert TokenDataset(tmp_path / "a").plan.settings.batch_pixels == 3 * 256
    (tmp_path / "a/ledger/000000.json").unlink()
    shard = (tmp_path / "a/shards/000000.parquet").read_bytes()
    tokenize(source, tmp_path / "a", codec=recipe, resume=True)
    assert coded == [3, 3, 1] * 2
    assert (tmp_path / "a/shards/000000.parquet").read_bytes() == shard
    tokenize(source, tmp_path / "b", codec=recipe)
    assert b"batch_pixels" not in (tmp_path / "b/plan.json").read_bytes()
    assert b"batch_pixels" not in (tmp_path / "b/shards/000000.parquet").read_bytes()
    (tmp_path / "b/ledger/000000.json").unlink()
    tokenize(source, tmp_path / "b", codec=recipe, resume=True, limits=few)
    assert coded[-1:] == [7]


def test_a_picture_that_needs_more_memory_than_there_is_fails_and_the_others_do_not(tmp_path, fresh, net):
    source = folder(tmp_path / "in", fresh, [(16, 16), (64, 80), (16, 16)])
    few = ["--memory", str(memory_for(1000)), "--workers", "0", "--mixed-sizes"]
    out, command = tmp_path / "out", ["tokenize", str(source), "--backbone", net, *TINY]
    assert main([*command, "-o", str(out), *few]) == 3
    (failure,) = failures(out).values()
    assert (failure["key"], failure["code"]) == ("01.png", "too_large")
    assert failure["message"] == (
        f"64 x 80 pixels take too much memory to be coded: --memory {memory.size_text(memory_for(64 * 80))} is enough"
    )
    assert main([*command, "-o", str(tmp_path / "all"), "--memory", failure["message"].split()[-3], *few[2:]]) == 0


def test_a_picture_beyond_the_limit_of_pixels_is_too_large(tmp_path, fresh, net, capsys):
    source = folder(tmp_path / "in", fresh, [(16, 16), (16, 17), (16, 16)])
    command = ["tokenize", str(source), "-o", str(tmp_path / "out"), "--backbone", net, *TINY, "--workers", "0"]
    assert main([*command, "--mixed-sizes", "--max-pixels", "256"]) == 3
    (failure,) = failures(tmp_path / "out").values()
    assert failure["code"] == "too_large"
    assert "16 x 17 pixels are 272, more than the limit of 256: --max-pixels raises it" in failure["message"]


def test_a_file_that_is_large_or_decodes_to_much_is_too_large(tmp_path):
    data, few = png(np.zeros((100, 100, 3), np.uint8)), Limits(memory=8 * 20 * 9999)
    answer = decode(data, "a.png", 3, 0, few)
    assert isinstance(answer, Failure)
    assert answer.code == "too_large"
    assert "100 x 100 pixels take too much memory to be decoded: --memory 1.6MiB is enough" in answer.message
    assert isinstance(decode(data, "a.png", 3, 0, replace(few, memory=1600 << 10)), Picture)
    assert decode(data, "a.png", 3, 0, Limits(), 9999) == Later(10000)
    (tmp_path / "a.png").write_bytes(data)
    size = len(data)
    request = Request(
        Item("a.png", 0), File(str(tmp_path / "a.png"), "a.png", size, ""), None, 3, 0, Limits(memory=8 * size - 8)
    )
    answer = answer_to(request)
    assert (answer.code, "its file has" in answer.message) == ("too_large", True)


def requests_of(images, limits):
    file = File("x", "x", 0, "")
    return [Request(Item(f"{i}.png", 0), file, png(image), 3, 0, limits) for i, image in enumerate(images)]


def test_large_pictures_are_decoded_by_fewer_workers_and_all_answers_come_in_order(fresh):
    """Of 2 workers each has a share of half: the first picture that is larger waits, and from then on one works."""
    sides = [8, 9, 40, 7, 41, 6, 90, 5]
    images = [fresh.integers(0, 256, (side, side, 3), np.uint8) for side in sides]
    limits = Limits(memory=8 * 20 * 2 * 1500)
    with Workers(2, limits=limits) as workers:
        answers = list(workers.map(iter(requests_of(images, limits))))
        assert workers.at_once == 1
    assert [getattr(a, "code", None) for a in answers] == [None] * 6 + ["too_large"] + [None]
    assert all((a.pixels == x).all() for a, x in zip(answers, images, strict=True) if isinstance(a, Picture))


def test_a_worker_answers_as_many_of_a_chunk_as_may_wait():
    images = [np.full((10, 10, 3), i, np.uint8) for i in range(5)]
    parcel = Parcel.of(requests_of(images, Limits()))
    assert [len(serve(parcel, None, most)) for most in (1, 300, 301, None)] == [1, 1, 2, 5]
    limits = Limits(memory=16_000)  # of it each of the three chunks in flight has 333 bytes of pixels
    sent = []
    with Workers(1, limits=limits) as workers:
        submit = workers._submit
        workers._submit = lambda chunk, *rest: sent.append(len(chunk)) or submit(chunk, *rest)
        answers = list(workers.map(iter(requests_of(images, limits))))
    assert [int(answer.pixels[0, 0, 0]) for answer in answers] == list(range(5))
    assert sent[0] > 2
    assert sum(sent) > 5  # what was left was sent again


def test_buckets_of_many_sizes_do_not_wait_without_end(fresh):
    """With a bound on batches the largest bucket goes when 8 times as much waits; what goes depends on the plan only."""
    sizes = [(8, 8 + i % 12) for i in range(60)]
    images = [fresh.integers(0, 256, (*size, 3), np.uint8) for size in sizes]

    class Counted(list):
        def __len__(self):
            return 60

    def made(bound):
        work = [(0, Counted(requests_of(images, Limits())))]
        with Workers(0) as workers:
            return [
                (b.rows, b.images.shape[2:])
                for b in batches(work, workers, Batching(32, None, bound))
                if b.images is not None
            ]

    assert sorted(row for rows, _ in made(None) for row in rows) == list(range(60))
    assert len(made(None)) == 12
    bounded = made(300)
    assert sorted(row for rows, _ in bounded for row in rows) == list(range(60))
    assert bounded == made(300)
    waiting, seen = 0, 0
    for rows, (height, width) in bounded:
        assert len(rows) * height * width <= 300
        waiting += sum(h * w for h, w in sizes[seen : max(seen, max(rows) + 1)])
        seen = max(seen, max(rows) + 1)
        waiting -= len(rows) * height * width
        assert waiting <= 8 * 300


def test_a_fault_concerns_one_image_and_short_memory_all(tmp_path, fresh, net, monkeypatch):
    source, recipe = folder(tmp_path / "in", fresh, [(16, 16)] * 5), CodecRecipe(backbone=net, changes=CHANGES)
    bad = torch.from_numpy(np.array(Image.open(source / "02.png"))).permute(2, 0, 1)
    encode = Codec.encode

    def broken(error):
        def encode_or_fail(self, images):
            if any(torch.equal(image, bad) for image in images):
                raise error
            return encode(self, images)

        return encode_or_fail

    monkeypatch.setattr(Codec, "encode", broken(ZeroDivisionError("by\nnothing")))
    counts = tokenize(source, tmp_path / "a", codec=recipe)
    assert (counts["n_ok"], counts["failed_by_code"]) == (4, {"fault": 1})
    assert failures(tmp_path / "a")["02.png"]["message"] == "a fault of noisebook: ZeroDivisionError: by"
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")):
        monkeypatch.setattr(Codec, "encode", broken(error))
        with pytest.raises(SpecError, match=r"too little memory for 5 images .* --batch-size, or a smaller --memory"):
            tokenize(source, tmp_path / "b", codec=recipe, resume=True)
    monkeypatch.setattr(Codec, "encode", broken(RuntimeError("CUDA error: an illegal memory access was encountered")))
    with pytest.raises(RuntimeError, match="CUDA error"):
        tokenize(source, tmp_path / "b", codec=recipe, resume=True)


def test_a_picture_that_the_codec_cannot_take_is_a_row(tmp_path, fresh, net, monkeypatch):
    """As of an image with more than 2^24 dimensions, which the extension refuses by a ValueError."""
    source, recipe = (
        folder(tmp_path / "in", fresh, [(16, 16), (24, 24), (16, 16)]),
        CodecRecipe(backbone=net, changes=CHANGES),
    )
    encode = Codec.encode

    def refuse(self, images):
        if images.shape[2] > 16:
            raise ValueError("the residual must have 1 to 2^24 dimensions")
        return encode(self, images)

    monkeypatch.setattr(Codec, "encode", refuse)
    counts = tokenize(source, tmp_path / "out", codec=recipe, mixed_sizes=True)
    assert (counts["n_ok"], counts["failed_by_code"]) == (2, {"codec": 1})


def test_a_lazy_picture_of_a_pipeline_is_held_against_formats_and_limits(net, fresh):
    work = TokenizeBatch(backbone=net, limits=Limits(pixels=300), **CHANGES)
    lazy = Image.open(io.BytesIO(png(fresh.integers(0, 256, (16, 16, 3), np.uint8))))
    assert len(work({"image": [lazy]})["tokens"]) == 1
    lazy.format = "EPS"
    with pytest.raises(ImageError, match="of the format EPS, which noisebook does not read"):
        work({"image": [lazy]})
    with pytest.raises(ImageError, match="17 x 18 pixels are 306, more than the limit of 300"):
        work({"image": [Image.new("RGB", (18, 17))]})


PEAK = """
import sys
from noisebook.cli.main import main
code = main(sys.argv[1:])
peak = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
print("peak", code, peak << 10)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_stays_below_the_memory(tmp_path, fresh):
    """12 megapixels would take more than 3 GB."""
    (tmp_path / "in").mkdir()
    small = fresh.integers(0, 256, (3, 4, 3), np.uint8)
    for i, (width, height) in enumerate([(320, 240)] * 2 + [(4000, 3000)]):
        Image.fromarray(small).resize((width, height)).save(tmp_path / f"in/{i}.jpg")
    most = 900 * MIB
    command = ["tokenize", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--memory", str(most), "--mixed-sizes"]
    how = ["--backbone", "gaussian-prior", "--steps", "1", "--budget", "1", "--vocab-size", "16", "--workers", "0"]
    done = subprocess.run([sys.executable, "-c", PEAK, *command, *how], capture_output=True, text=True)
    word, code, peak = done.stdout.split()[-3:]
    assert (word, code) == ("peak", "3"), done.stderr
    assert int(peak) < most
    assert {key: f["code"] for key, f in failures(tmp_path / "out").items()} == {"2.jpg": "too_large"}
