"""Pictures that kill or hang the process that decodes them, as a decoder with a fault does; imported by workers."""

import os
import signal
import threading
import time
from typing import Any

import numpy as np

from noisebook.datasets import decoding, worker

KILLS, HANGS, KILLS_WHILE_SENDING = b"noisebook kills", b"noisebook hangs", b"noisebook is late"
LARGE = 6000  # pixels a side of an answer that takes a while to send
DECODE = decoding.decode


def decode(data: bytes, *how: Any) -> Any:
    """`decoding.decode`, but for bytes that begin with one of the three."""
    if data.startswith(KILLS_WHILE_SENDING):
        pixels = np.ones((LARGE, LARGE, 3), np.uint8)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return decoding.Picture(pixels, LARGE, LARGE)
    if data.startswith(KILLS):
        os.kill(os.getpid(), signal.SIGKILL)
    if data.startswith(HANGS):
        time.sleep(3600)
    return DECODE(data, *how)


def serve(parcel: Any, *how: Any) -> list[Any]:
    """What workers call in place of `worker.serve`."""
    decoding.decode = decode
    return worker.serve(parcel, *how)
