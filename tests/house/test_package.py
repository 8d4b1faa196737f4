"""What the checkout holds, how light it is to import, and that what is built from it can be installed."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

from common import ROOT

HEAVY = ("torch", "triton", "diffusers", "transformers", "pyarrow", "ray", "skimage", "scipy", "nvtx", "noisebook_kernels")


def test_importing_noisebook_is_light():
    code = f"import sys, noisebook, noisebook.cli.main; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    names = "('triton', 'diffusers', 'pyarrow', 'ray')"
    code = f"import sys, noisebook.codec.codec; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_weights_fit_and_have_model_cards():
    weights = [p for p in ROOT.rglob("*.safetensors") if ".venv" not in p.parts and "build" not in p.parts]
    assert sum(p.stat().st_size for p in weights) < 48 * 2**20
    for path in (ROOT / "engine/noisebook/backbones/weights").glob("*.safetensors"):
        card = path.with_suffix(".md").read_text()
        for word in ("data", "terms", "date"):
            assert word in card.lower(), f"{path.name}: the model card does not speak of {word}"


def test_nothing_of_this_machine_is_in_the_tree():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"/(work|root|home)/\w")
    for name in tracked.stdout.split():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".sh", ".cpp", ".h", ".json", ".in") and path.name != "test_package.py":
            assert not pattern.search(path.read_text()), f"{name} holds a path of somebody's machine"


@pytest.mark.slow
def test_sdist_builds_a_wheel_that_runs_in_an_empty_folder(tmp_path):
    """sdist -> wheel -> unpacked in a folder of its own -> `noisebook` runs from another, with no checkout in sight."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    subprocess.run([*build, "--sdist", str(ROOT)], check=True, capture_output=True)
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp_path / "src", filter="data")
    (source,) = (tmp_path / "src").iterdir()
    subprocess.run([*build, "--wheel", str(source)], check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        z.extractall(tmp_path / "site")
    for wanted in ("noisebook/py.typed", "noisebook/spec/presets.json", "noisebook_kernels/__init__.py"):
        assert wanted in names
    for folder in (ROOT / "engine/noisebook", ROOT / "kernels/noisebook_kernels"):
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix not in (".pyc", ".so", ".pyd"):
                assert path.relative_to(folder.parent).as_posix() in names, "setup.py leaves it out"
    assert any(n.startswith("noisebook/_C") for n in names), "the wheel has no C++ extension"
    assert any(n.endswith("weights/gaussian-prior.safetensors") for n in names)
    (tmp_path / "empty").mkdir()
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "import noisebook, noisebook._C as c, sys; print(noisebook.__file__, c.__file__)"
    for argv in (["-c", code], ["-m", "noisebook", "backbones"]):
        done = subprocess.run([sys.executable, *argv], cwd=tmp_path / "empty", env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert str(tmp_path / "site") in done.stdout or "photo" in done.stdout
