"""The Dockerfile, without a container engine: lint, rules on its instructions, and its wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.k8s.manifests import K8S, REPOSITORY, build
from tests.k8s.operator_rules import groups, ray_container

DOCKERFILE = K8S / "Dockerfile"
PACKAGES = {"qwen3_ray", "cluster", "protos"}


def instructions() -> list[tuple[str, str]]:
    """(instruction, argument) with continued lines joined and comments dropped."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (name, argument)
        for name, _, argument in (line.partition(" ") for line in joined.splitlines())
        if name
    ]


def arguments(name: str) -> list[str]:
    return [argument for found, argument in instructions() if found == name]


def build_context() -> list[str]:
    """Paths that .dockerignore lets through; it must begin by refusing everything."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    return [rule.removeprefix("!") for rule in rules if rule.startswith("!")]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_both_stages_stand_on_one_pinned_base() -> None:
    assert arguments("FROM") == ["${BASE} AS build", "${BASE}"]
    bases = [a for a in arguments("ARG") if a.startswith("BASE=")]
    assert len(bases) == 1
    assert re.fullmatch(r"BASE=python:3\.11[\w.-]*-slim-\w+", bases[0])


def test_the_image_runs_as_an_ordinary_user_with_a_number() -> None:
    names = [name for name, _ in instructions()]
    assert arguments("USER") == ["1000:1000"]
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])
    assert "--uid 1000" in arguments("RUN")[-1]


def test_the_image_has_what_kuberay_calls_and_says_what_it_is() -> None:
    assert all(tool in arguments("RUN")[-1] for tool in ("bash=", "wget="))
    assert "/opt/venv/bin:$PATH" in arguments("ENV")[-1]  # `ray` without a login shell
    labels = " ".join(arguments("LABEL"))
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_packages_come_from_one_index_each_and_are_not_editable() -> None:
    installs = [run for run in arguments("RUN") if "pip install" in run]
    assert len(installs) == 2
    for install in installs:
        assert len(re.findall(r"--(?:extra-)?index-url", install)) == 1
        assert "--constraint constraints.txt" in install
        assert "--no-cache-dir" in install
        assert not re.search(r" (-e|--editable) ", install)
    assert 'index-url "${TORCH_INDEX}"' in installs[0]


def test_no_weights_or_secrets_can_enter_a_layer() -> None:
    assert arguments("ADD") == []
    sources = [s for copy in arguments("COPY") for s in copy.split()[:-1]]
    local = [source for source in sources if not source.startswith(("--from", "/opt/venv"))]
    assert set(local) == set(build_context())
    assert not re.search(r"(?i)token|password|secret", DOCKERFILE.read_text())


def test_every_container_of_the_manifest_uses_this_image_and_its_user() -> None:
    (service,) = (r for r in build(K8S / "base") if r["kind"] == "RayService")
    pyproject = (REPOSITORY / "pyproject.toml").read_text()
    (version,) = re.findall(r'^version = "(.+)"$', pyproject, re.MULTILINE)
    assert f"VERSION={version}" in arguments("ARG")
    for _, group in groups(service):
        assert ray_container(group)["image"] == f"qwen3-ray:{version}"
        assert group["template"]["spec"]["securityContext"]["runAsUser"] == 1000


def test_the_wheel_is_complete_and_holds_nothing_else(tmp_path: Path) -> None:
    for name in build_context():
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path)
    sources = {
        path.relative_to(tmp_path).as_posix()
        for package in PACKAGES
        for path in (tmp_path / package).rglob("*")
        if path.is_file()
    }
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", tmp_path / "out", tmp_path], check=True)
    (built,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(built) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == sources
