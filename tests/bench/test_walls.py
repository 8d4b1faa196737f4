"""The walls of bench/: experiments import bench/lib and no other experiment, bench/lib imports none, README lists all."""

import ast
import re
from pathlib import Path

import pytest

from common import ROOT

pytestmark = pytest.mark.quick

BENCH = ROOT / "bench"
FOLDERS = ("speed", "quality", "paper", "reliability", "findings")
FILES = sorted(BENCH.rglob("*.py"))


def imported(source: str) -> set[str]:
    """The modules of bench/ that a file imports, also inside functions, such as "lib.page"; "" for one without a name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.split(".")[0] == "bench"}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add("")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bench":
            module = (node.module or "").partition(".")[2]
            deep = "." in module or module in ("report", "report_gpu")
            found |= {module} if deep else {f"{module}.{alias.name}".strip(".") for alias in node.names}
    return found


def experiment(module: str) -> str:
    """A script and the files whose names begin with its own are one experiment; so is the folder `paper`."""
    folder, _, name = module.rpartition(".")
    return folder if folder in ("lib", "paper") else f"{folder}.{name.split('_')[0]}"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(BENCH).with_suffix("").parts)


def faults(module: str, source: str) -> list[str]:
    """What a file may not import."""
    own = experiment(module)
    return [
        f"{module} imports {other or 'relatively'}" for other in imported(source) if experiment(other) not in ("lib", own)
    ]


def test_experiments_import_the_library_and_no_other_experiment():
    assert len(FILES) > 40
    assert not [fault for path in FILES for fault in faults(module_of(path), path.read_text())]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("findings.ideas", "from bench.quality.rate_distortion import Row"),
        ("findings.ideas", "from bench.quality import rate_distortion"),
        ("findings.ideas", "def f():\n    import bench.quality.kodak"),
        ("quality.kodak", "from bench.quality import pictures"),
        ("lib.page", "from bench.speed import throughput"),
        ("lib.page", "from bench import report"),
        ("speed.scaling", "from . import throughput"),
        ("speed.scaling", "import bench"),
        ("paper.run", "from bench.quality.quality import ROWS"),
    ],
)
def test_a_wall_that_is_broken_is_seen(module, source):
    assert faults(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("findings.ideas", "from bench.lib import metrics, page\nfrom bench.lib.record import ROOT\nimport noisebook"),
        ("reliability.faults", "from bench.reliability import faults_kill, faults_zoo"),
        ("paper.run", "from bench.paper import report, walks\nfrom bench.paper.sections import plan"),
        ("report", "from bench.report_gpu import gpu"),
    ],
)
def test_what_is_allowed_is_no_fault(module, source):
    assert not faults(module, source)


def test_the_folders_are_no_packages_and_hold_nothing_else():
    """An `__init__.py` in bench/ would hide tests/bench from the tests, which have the same name."""
    assert not list(BENCH.rglob("__init__.py"))
    assert {path.name for path in BENCH.iterdir() if path.is_dir() and path.name[0] not in "._"} == {
        "lib",
        "results",
        *FOLDERS,
    }
    assert not [path for path in FILES if len(path.read_text().splitlines()) > 350]


def test_the_index_lists_every_script_and_every_result():
    index = (BENCH / "README.md").read_text()
    scripts = {path for path in FILES if '__name__ == "__main__"' in path.read_text() or path.name.startswith("test_")}
    named = set(re.findall(r"`((?:\w+/)?\w+\.py)`", index))
    assert {path.relative_to(BENCH).as_posix() for path in scripts} <= named
    assert all((BENCH / name).exists() for name in named), "a script that is not there"
    results = {path.name for path in (BENCH / "results").glob("*.json")}
    listed = set(re.findall(r"`(\w+\.json)`", index))
    assert results <= listed
    waiting = {"gpu_tokenizing.json", "gpu_latent.json", "published.json"}
    waiting |= {"bit_errors.json", "levels_per_picture.json", "diffc.json"}
    assert listed - results <= waiting, "a result that is not there, but for those that wait for a GPU or a network"
