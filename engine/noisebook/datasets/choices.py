"""What `tokenize` chooses where nobody has said: images of a batch, how the network computes, workers.

Batches, the network's dtype and compiling can change tokens. So they follow from the data set and the kind of machine only,
and are written into the plan: whoever goes on with it, and every other rank, reads them there. The number of workers
changes nothing.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from noisebook.backbones.base import DTYPES
from noisebook.backbones.precision import auto_dtype
from noisebook.codec.codec import Codec
from noisebook.datasets.recipe import Network, Size

BATCH = 32  # images, on a CPU and where sizes are not known
BATCH_PIXELS, MOST = 1 << 23, 1024  # of a batch on a GPU, and images: more does not make them faster there
PIXEL = 4096  # bytes of the GPU for a pixel of a batch, which is meant to be plenty
UNSEEN = 16 << 30  # bytes that a GPU is taken to have which this process does not see: another machine's
WORKERS = 8  # for each device
UNSAID = {"dtype": "float32", "compile": "False"}  # entries of `CodecRecipe.network` that may be left open, "", and what
# a plan means that does not have them: one of an earlier noisebook, or of a codec of the caller's own
WORTH = 1e17  # operations of a run's networks from which compiling pays, see docs/datasets.md


def batch_size(device: str, size: Size | None, memory: int | None = None) -> int:
    """Images of a batch. `device`: its kind; `size`: (height, width) of all images, None if they differ; `memory`: bytes of
    a GPU (None: `gpu_memory`), of which the highest power of two counts, so that machines that are nearly equal choose the
    same."""
    if device != "cuda" or size is None:
        return BATCH
    memory = gpu_memory() if memory is None else memory
    pixels = size[0] * size[1]
    most = min(BATCH_PIXELS, (1 << memory.bit_length() - 1) // PIXEL)
    return 1 << max(1, min(MOST, most // pixels)).bit_length() - 1


def workers(devices: int) -> int:
    """Processes that decode pictures: one for each core that this process may use, up to 8 for each device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(WORKERS * devices, cores or 1)


def gpu_memory() -> int:
    """Bytes of memory of the smallest GPU that this process sees."""
    gpus = range(torch.cuda.device_count())
    return min((torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus), default=UNSEEN)


def operations(codec: Codec, size: Size) -> float:
    """Multiplications and additions of the networks in an encode of one image of (height, width); 0 where they cannot be
    counted. Nothing is computed: the network runs on tensors without values."""
    from torch.utils.flop_counter import FlopCounterMode  # its import takes a tenth of a second

    backbone = codec.backbone
    empty = {name: tensor.to("meta") for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]}
    try:
        state = backbone.state_shape(*backbone.padded(*size))
        y = torch.empty(1, *state, device="meta")
        sigma = codec.spec.schedule[0].sigma if len(codec.spec.schedule) else 1.0
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            torch.func.functional_call(backbone, empty, (y, sigma if sigma < float("inf") else 1.0))
    except Exception:  # whatever a network of the user's own does with a tensor that has no values
        return 0.0
    return float(counter.get_total_flops()) * codec.encode_nfe


def compiles(codec: Codec, device: str, size: Size | None, images: int, log: Callable[[str], None]) -> bool:
    """Whether that many images are worth compiling the network for. `log` hears why."""
    if device != "cuda":
        return False
    work = images * operations(codec, size or codec.default_size)
    if not work:
        log("compile: off: the operations of this network cannot be counted (--compile for the other)")
        return False
    pays = work >= WORTH
    log(
        f"compile: {'on' if pays else 'off'}: the networks of {images:,} images take {work:.2g} operations, and compiling "
        f"pays from about {WORTH:.0g} on (--{'no-' if pays else ''}compile for the other)"
    )
    return pays


def dtype(codec: Codec, device: str, log: Callable[[str], None]) -> str:
    """What `auto` is on devices of that kind: where the codec is, if that is one, or as all that are seen answer. `log`
    hears why, where somebody may want the other."""
    backbone = codec.backbone
    value = auto_dtype(backbone, backbone.device if backbone.device.type == device else device)
    if value != UNSAID["dtype"]:
        log(f"dtype: {value}: the processor has instructions for it (--dtype float32 for the other)")
    elif device == "cuda" in backbone.auto_bfloat16 and not torch.cuda.is_available():
        log(f"dtype: {value}: no GPU is seen here that could be asked for another (--dtype bfloat16)")
    return value


def chosen(network: Network, recorded: Network | None, choose: Mapping[str, Callable[[], Any]]) -> Network:
    """`CodecRecipe.network` with what it leaves open: as the plan that is there has `recorded` it, or chosen now."""
    values = dict(network)
    for name, choice in choose.items():
        if network.get(name) == "":
            values[name] = {**UNSAID, **recorded}[name] if recorded is not None else str(choice())
    return values


def with_dtype(network: Network, codec: Codec) -> Network:
    """The same of a codec of the caller's own, of which a plan knows the device only: with its dtype, unless it is what a
    plan means that does not say it."""
    dtype = codec.backbone.accelerated_to
    said = "dtype" in network or dtype == UNSAID["dtype"] or dtype not in DTYPES
    return network if said else {**network, "dtype": dtype}
