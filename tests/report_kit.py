"""What tests of reports share: a page, read."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

EMPTY = ("meta", "img", "path", "circle", "br")


class Page(HTMLParser):
    """Tags that are closed as they were opened, texts, and every image."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.texts, self.images, self.addresses, self.tags = [], [], {}, [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [v for k, v in given.items() if k in ("src", "href", "action")]
        if tag == "img":
            data = base64.b64decode(given["src"].removeprefix("data:image/webp;base64,"))
            self.images[given["alt"]] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)
