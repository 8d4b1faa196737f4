"""docs/embedding.md: its blocks run in order, on small pictures and with a backbone that is quick."""

import re

import pytest
import torch
from PIL import Image

from common import ROOT, random_images

pytest.importorskip("pyarrow")
from noisebook.datasets import CodecRecipe, tokenize

PAGE = (ROOT / "docs/embedding.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SMALL = {"batch_size=16": "batch_size=2", "num_workers=2": "num_workers=1", "(256, 256)": "(64, 96)"}
SMALL['("photo-low")'] = '("photo-low", backbone="gaussian-prior")'


def test_the_blocks_run(tmp_path, monkeypatch, fresh, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PICTURES").mkdir()
    for i, x in enumerate(random_images(fresh, 2, 64, 96)):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(f"PICTURES/{i}.png")
    recipe = CodecRecipe("photo-low", "gaussian-prior", changes={"vocab_size": 256})
    tokenize("PICTURES", "TOKENS", codec=recipe)
    code = "\n".join(BLOCKS)
    for large, small in SMALL.items():
        assert large in code
        code = code.replace(large, small)
    scope: dict = {"__name__": "embedding"}
    exec(code, scope)
    assert scope["first"].shape == (2, scope["tokens"].shape[1])
    assert "a picture of 64 x 96: " in capsys.readouterr().out
    assert scope["sequence"].shape == (2, scope["ids"].length)
    assert scope["loss"].isfinite()
    assert torch.equal(scope["again"], scope["tokens"])
    assert scope["embeddings"] == 50257 + 65536


def test_what_the_page_says_of_the_vocabulary_of_photo():
    import noisebook

    codec = noisebook.load("photo", backbone="gaussian-prior")
    assert codec.vocabulary((512, 768)).size == 65536
    assert codec.vocabulary((512, 768), per_position=True).size == 65536 * len(codec.layout_for(512, 768))
    assert "the default has 65,536 ids" in PAGE


def test_every_page_of_code_is_python():
    assert PAGE.count("```") == 2 * len(BLOCKS), "a block of another language would not be run"
