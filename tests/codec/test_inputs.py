"""What `encode` takes and `decode` gives: arrays, lists, ranges of floats, uint8, and who hears how far they are."""

import numpy as np
import pytest
import torch

from common import Shrink, random_images
from noisebook import CodecMismatchError, ImageError, SpecError
from noisebook.codec import inputs
from noisebook.codec.codec import Codec
from noisebook.runtime.pixels import to_uint8
from noisebook.spec.presets import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:quality stalls")


def build(backbone, candidates=1, graphs=True, **changes) -> Codec:
    base = {"steps": 6, "sigma_max": 3, "sigma_min": 0.2, "budget": 4, "vocab_size": 256}
    return Codec(Recipe(**{**base, **changes}).build(backbone), backbone, graphs, candidates=candidates)


def floats(images) -> torch.Tensor:
    return images.float() * (2 / 255) - 1


# ---- arrays and lists ---------------------------------------------------------------------------------------------------
def test_arrays_are_the_tensors_that_they_hold(shrink, fresh):
    codec, images = build(shrink), random_images(fresh, 3, 12, 20)
    tokens, array = codec.encode(images), images.permute(0, 2, 3, 1).numpy()
    array.flags.writeable = False
    for same in (array, array[:, ::-1][:, ::-1], np.asfortranarray(array)):
        assert torch.equal(codec.encode(same), tokens)
    assert torch.equal(codec.encode(array[1]), codec.encode(images[1:2]))
    for dtype in (np.float32, np.float64, ">f4"):
        assert torch.equal(codec.encode((array * np.float32(2 / 255) - 1).astype(dtype)), tokens)


def test_grey_arrays_need_no_axis_for_their_channel(fresh):
    grey = Shrink()
    grey.channels = 1
    codec, images = build(grey), random_images(fresh, 2, 12, 20)[:, :1]
    tokens, array = codec.encode(images), images.permute(0, 2, 3, 1).numpy()
    for same in (array, array[..., 0]):
        assert torch.equal(codec.encode(same), tokens)
    assert torch.equal(codec.encode(array[1, :, :, 0]), tokens[1:])
    with pytest.raises(ImageError, match=r"\[H, W\], \[B, H, W\], \[H, W, 1\] or .* not \[2, 12, 20, 3\]"):
        codec.encode(array.repeat(3, -1))


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i4", "u8"])
def test_tokens_decode_from_arrays_of_integers(shrink, fresh, dtype):
    codec = build(shrink)
    tokens = codec.encode(random_images(fresh, 2, 12, 20))
    array = tokens.numpy().astype(dtype)
    array.flags.writeable = False
    assert torch.equal(codec.decode(array, size=(12, 20)), codec.decode(tokens, size=(12, 20)))
    with pytest.raises(CodecMismatchError, match="torch tensor"):
        codec.decode(tokens.numpy().astype(float), size=(12, 20))
    with pytest.raises(CodecMismatchError, match=r"\[B, L\], and not a list of 2: decode them one by one, .* torch.cat"):
        codec.decode([tokens, array], size=(12, 20))  # pyright: ignore


def test_a_list_gives_a_list_in_its_order_whatever_the_sizes(shrink, fresh, monkeypatch):
    codec = build(shrink)
    one, two, three = (random_images(fresh, n, *size) for n, size in ((1, (12, 20)), (2, (16, 16)), (1, (12, 20))))
    given = [one, two, three[0], floats(one), one[0].permute(1, 2, 0).numpy()]
    alone = [codec.encode(x) for x in (one, two, three, one, one)]
    for together in (inputs.TOGETHER, 300):
        monkeypatch.setattr(inputs, "TOGETHER", together)
        for some in (given, tuple(given)):
            tokens = codec.encode(some)
            assert isinstance(tokens, list)
            assert all(torch.equal(a, b) for a, b in zip(tokens, alone, strict=True))
    assert [len(group) for group in inputs.in_groups([one] * 5)] == [1] * 5  # 240 pixels each, of 300
    monkeypatch.setattr(inputs, "TOGETHER", 480)
    assert inputs.in_groups([one, two, one, one, floats(one)]) == [[0, 2], [1], [3], [4]]


BAD = {
    "channels of an array": (lambda x: x.numpy(), r"numpy array of images is \[H, W, 3\].*from_numpy"),
    "no image": (lambda x: x[0, 0].numpy(), r"not \[8, 8\]"),
    "integers": (lambda x: x[0].permute(1, 2, 0).int().numpy(), "uint8, or float"),
    "a path": (lambda x: "cat.png", "a PIL image, or a list of them, not str"),
    "none": (lambda x: None, "not NoneType"),
    "an empty list": (lambda x: [], "an empty list"),
    "one of a list": (lambda x: [x, x.long()], "image 1 of the list: images must be uint8"),
    "a list of a list": (lambda x: [[x]], "image 0 of the list"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_image_is_refused(kind, shrink, fresh):
    change, words = BAD[kind]
    with pytest.raises(ImageError, match=words) as info:
        build(shrink).encode(change(random_images(fresh, 1, 8, 8)))
    assert "\n" not in str(info.value)


def test_weights_do_not_go_with_a_list(shrink, fresh):
    with pytest.raises(ImageError, match="one by one"):
        build(shrink).encode([random_images(fresh, 1, 8, 8)], torch.ones(1, 1, 8, 8))


# ---- ranges of floats ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("verb", ["encode", "reconstruct", "trace", "encode_packed"])
def test_floats_that_are_never_negative_have_to_say_their_range(verb, shrink, fresh):
    codec, images = build(shrink), random_images(fresh, 2, 12, 20)
    work = getattr(codec, verb)

    def first(*args, **options):
        out = work(*args, **options)
        return out[0] if isinstance(out, tuple) else out

    tokens = first(images)
    with pytest.raises(ImageError, match=r"\[0, 1\].*\[-1, 1\].*range=\(0, 1\) if .*range=\(-1, 1\) if"):
        work(images / 255)
    with pytest.raises(ImageError, match=r"\[0, 255\].*range=\(0, 255\)"):
        work(images.float())
    assert (first(images / 255, range=(0, 1)) == tokens).float().mean() > 0.99  # but for the last bit of a float
    assert (first(images.float(), range=(0, 255)) == tokens).float().mean() > 0.99
    bright = floats(images).abs()
    assert torch.equal(first(bright, range=(-1, 1)), first(torch.cat([bright, -bright]))[:2])


def test_a_list_is_one_batch_of_floats(shrink, fresh):
    codec = build(shrink)
    x = floats(random_images(fresh, 1, 8, 8))
    assert torch.equal(codec.encode([x.abs(), x])[1], codec.encode(x))  # the second says that black is below 0
    with pytest.raises(ImageError, match="negative"):
        codec.encode([x.abs(), x.abs()])
    unit = codec.encode([(x + 1) / 2, to_uint8(x)], range=(0, 1))
    assert (unit[0] == unit[1]).float().mean() > 0.99  # uint8 is 0 ... 255 beside any floats


@pytest.mark.parametrize(
    ("images", "span", "words"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (0, 1), "for images of floats"),
        (torch.full((1, 3, 8, 8), 0.5), (1, 0), "black below white"),
        (torch.full((1, 3, 8, 8), 0.5), (0, float("inf")), "two finite values"),
        (torch.full((1, 3, 8, 8), 0.5), 1, "the two values"),
        (torch.full((1, 3, 8, 8), 0.5), "unit", "the two values"),
        (torch.full((1, 3, 8, 8), 99.0), (0, 1), "from 99 to 99 are not in the range"),
        (torch.full((1, 3, 8, 8), -0.5), (0, 1), "from -0.5 to -0.5"),
        (torch.full((1, 3, 8, 8), 2.0), (-1, 1), r"in \[-1, 1\], and these are from 2 to 2: .* range=\(black, white\)"),
        (torch.full((1, 3, 8, 8), float("nan")), (0, 1), "these have NaN or infinite values"),
        (torch.full((1, 3, 8, 8), -float("inf")), None, "these have NaN or infinite values"),
    ],
)
def test_ranges_that_are_none(images, span, words, shrink):
    with pytest.raises(ImageError, match=words):
        build(shrink).encode(images, range=span)


# ---- numbers, and uint8 -------------------------------------------------------------------------------------------------
def test_tokens_per_image_is_the_length_of_the_tokens(shrink, fresh):
    for changes in ({}, {"rows": 2, "start_budget": 2}, {"budget": 3, "budget_last": 60, "scale_pixels": 1600}):
        codec = build(shrink, **changes)
        assert codec.encode(random_images(fresh, 1, 24, 40)).shape[1] == codec.tokens_per_image((24, 40))
        assert codec.tokens_per_image() == len(codec.layout)


def test_decode_gives_the_pixels_of_a_file(shrink, fresh):
    codec = build(shrink)
    tokens = codec.encode(random_images(fresh, 2, 12, 20))
    pixels = codec.decode(tokens, (12, 20), dtype="uint8")
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (2, 3, 12, 20))
    assert torch.equal(pixels, to_uint8(codec.decode(tokens, (12, 20))))
    for bad in ("float16", torch.uint8, None):
        with pytest.raises(SpecError, match='"float32" or "uint8"'):
            codec.decode(tokens, (12, 20), dtype=bad)


# ---- progress -----------------------------------------------------------------------------------------------------------
class Heard(list):
    """A progress function that keeps what it got."""

    def __call__(self, done, total):
        self.append((done, total))

    def check(self, total):
        assert list(self) == [(n, total) for n in range(total + 1)]
        self.clear()


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"start_budget": 2, "solver": "heun", "solver_steps": 3}, {"p": 1}])
def test_every_network_call_is_reported_once(changes, candidates, shrink, fresh):
    codec, images, heard = build(shrink, candidates, **changes), random_images(fresh, 2, 12, 20), Heard()
    tokens = codec.encode(images, progress=heard)
    assert torch.equal(tokens, codec.encode(images))
    heard.check(7 if candidates > 1 else codec.encode_nfe)  # copies of an image are one batch
    assert torch.equal(codec.decode(tokens, (12, 20), progress=heard), codec.decode(tokens, (12, 20)))
    heard.check(codec.nfe)
    codec.decode(tokens, (12, 20), steps=2, progress=heard)
    heard.check(codec.nfe_of(2))


def test_batches_and_networks_beside_the_walk_are_counted(shrink, fresh):
    codec, heard = build(shrink), Heard()
    images = [random_images(fresh, n, *size) for n, size in ((1, (12, 20)), (2, (16, 16)), (1, (12, 20)))]
    tokens = codec.encode(images, progress=heard)
    heard.check(2 * 6)
    codec.decode(tokens[1], (16, 16), realism=0.5, progress=heard)
    heard.check(codec.nfe_of(None, 0.5))
    lost = torch.zeros_like(tokens[1], dtype=torch.bool)
    lost[1, 3] = True
    codec.decode(tokens[1], (16, 16), lost=lost, progress=heard)
    heard.check(2 * codec.nfe)


def test_a_progress_that_raises_ends_the_work_and_nobody_is_called_after(shrink, fresh):
    codec, images, calls = build(shrink), random_images(fresh, 1, 8, 8), []

    def stop(done, total):
        calls.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        codec.encode(images, progress=stop)
    codec.encode(images)
    assert calls == [0, 1, 2]
