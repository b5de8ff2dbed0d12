"""The repository itself: packages resolve inside it, documents are true to the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cluster
import protos
import qwen3_ray
from cluster.config import DeployConfig

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("k8s/**/*.md")]
)


@pytest.mark.parametrize("package", [cluster, protos, qwen3_ray], ids=lambda p: p.__name__)
def test_our_packages_are_the_repository_s_own(package: object) -> None:
    assert Path(str(getattr(package, "__file__", ""))).is_relative_to(ROOT)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_files_that_a_document_links_to_exist(document: Path) -> None:
    text = (ROOT / document).read_text()
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    missing = [target for target in targets if not (ROOT / document.parent / target).exists()]
    assert not missing


def test_readme_lists_every_option_with_its_default() -> None:
    text = (ROOT / "README.md").read_text()
    rows = dict(re.findall(r"^\| `--([a-z-]+)`[^|]*\| ([^|]*) \|", text, re.MULTILINE))
    for name, field in DeployConfig.model_fields.items():
        default = "-" if field.default is None else str(field.default)
        assert rows.get(name.replace("_", "-")) == default, name


def test_exports_of_the_package_exist_and_are_listed() -> None:
    for name in qwen3_ray.__all__:
        assert getattr(qwen3_ray, name) is not None


@pytest.mark.parametrize(
    "module",
    ["qwen3_ray", "cluster.ingress.server", "cluster.router.router", "cluster.replica.front"],
)
def test_processes_that_face_clients_and_links_do_not_load_torch(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("path", sorted(Path("benchmarks").glob("*.py")), ids=str)
def test_benchmarks_of_the_engine_set_its_environment_before_torch_loads(path: Path) -> None:
    """Else torch's threads spin after each call, on the cores of whatever is timed next."""
    roots = re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
    if "torch" in roots and "qwen3_ray" in roots:
        assert roots.index("qwen3_ray") < roots.index("torch")


@pytest.mark.parametrize(("package", "budget"), [("qwen3_ray", 22_450), ("cluster", 5_800)])
def test_the_code_keeps_to_its_budget(package: str, budget: int) -> None:
    """See docs/adr/0007; of the cluster, `ops` does not count."""
    sources = [path for path in ROOT.glob(f"{package}/**/*.py") if "ops" not in path.parts]
    assert sum(len(path.read_text().splitlines()) for path in sources) <= budget


def test_no_source_file_exceeds_300_lines() -> None:
    sources = [*ROOT.glob("qwen3_ray/**/*.py"), *ROOT.glob("cluster/**/*.py")]
    large = [str(path) for path in sources if len(path.read_text().splitlines()) > 300]
    assert not large
