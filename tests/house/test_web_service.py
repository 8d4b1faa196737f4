"""docs/howto/web-service.md: the service of the page decodes, and refuses everything else as it promises."""

import functools
import http.client
import io
import socket
import threading
import time

import numpy as np
import pytest
from docs_kit import blocks_of
from PIL import Image

import noisebook
from common import random_images
from noisebook.format.container import Container
from noisebook.images.files import decode_picture, encode_picture

(SCRIPT,) = (block.text for block in blocks_of("docs/howto/web-service.md") if block.file == "serve.py")


@pytest.fixture(scope="module")
def service():
    """(what the script defines, the port of a service that runs)."""
    scope: dict = {"__name__": "serve"}
    exec(compile(SCRIPT, "serve.py", "exec"), scope)
    server = scope["make_server"](0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield scope, server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def coded(service):
    """A function: changes of the preset `photo` -> a fresh picture's file."""
    picture = random_images(np.random.default_rng(), 1, 32, 48)[0].permute(1, 2, 0).numpy()

    @functools.cache
    def make(backbone=service[0]["backbone"], steps: int = 2) -> bytes:
        return encode_picture(noisebook.load("photo", steps=steps, backbone=backbone), picture)

    return make


def post(port: int, data: bytes, path: str = "/decode", method: str = "POST", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, data, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_file_becomes_the_picture_that_decode_makes(service, coded):
    status, body = post(service[1], coded())
    assert status == 200, body
    container = Container.from_bytes(coded())
    expected = decode_picture(noisebook.load(noisebook.CodecSpec.from_json(container.spec_json)), container)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(body))), expected)


def test_what_is_refused_has_its_status_in_one_line_and_the_service_goes_on(service, coded):
    scope, port = service
    good = coded()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 1
    for status, word, answer in (
        (422, b"", post(port, bytes(damaged))),
        (422, b"", post(port, good[:-9])),
        (422, b"", post(port, b"no tokens")),
        (422, b"network calls", post(port, coded(steps=60))),
        (409, b"backbone", post(port, coded("gaussian-prior"))),
        (404, b"/decode", post(port, good, "/other")),
        (413, b"not taken", post(port, b"", **{"Content-Length": str(scope["BYTES"] + 1)})),
        (413, b"not taken", post(port, b"", **{"Content-Length": "9" * 5000})),
        (411, b"Content-Length", post(port, b"", **{"Content-Length": "-1"})),
        (501, b"", post(port, b"", method="PUT")),
    ):
        assert answer[0] == status, answer
        assert word in answer[1]
        if status != 501:  # the server's own page
            assert answer[1].count(b"\n") == 1
    assert post(port, good)[0] == 200


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(service, coded, monkeypatch):
    scope, port = service
    monkeypatch.setitem(scope, "LIMITS", noisebook.runtime.limits.Limits(pixels=1000, network_calls=50))
    status, body = post(port, coded())
    assert (status, b"pixels: 1,536" in body) == (422, True), body


def test_a_file_that_ends_early(service):
    with socket.create_connection(("127.0.0.1", service[1]), timeout=60) as client:
        client.sendall(b"POST /decode HTTP/1.0\r\nContent-Length: 100\r\n\r\nfew")
        client.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").readline().split()[1] == b"400"


def test_no_more_files_are_held_than_there_is_room_for(service, coded, monkeypatch):
    """Clients that say a length and send nothing take all the room, and give it back when they go."""
    scope, port = service
    monkeypatch.setattr(scope["Handler"], "timeout", 600)  # nobody loses a place on a slow machine
    clients = []
    for _ in range(8):
        clients.append(socket.create_connection(("127.0.0.1", port), timeout=60))
        clients[-1].sendall(b"POST /decode HTTP/1.0\r\nContent-Length: 100\r\n\r\n")
    while (answer := post(port, b"no tokens"))[0] == 422:  # until all of them are seen
        time.sleep(0.02)
    assert answer == (503, b"busy: try again in a few seconds\n")
    for client in clients:
        client.close()
    while (status := post(port, b"no tokens")[0]) == 503:
        time.sleep(0.02)
    assert status == 422
