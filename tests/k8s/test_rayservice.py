"""The base manifests pass everything that can be checked without a cluster; broken ones do not."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.k8s.manifests import K8S, KUBERNETES_VERSIONS, REPOSITORY, Validator, build
from tests.k8s.operator_rules import groups, ray_container, templates

Json = dict[str, Any]


@pytest.fixture(scope="module")
def validator() -> Validator:
    return Validator(KUBERNETES_VERSIONS[-1])


@pytest.fixture(scope="module")
def built() -> list[Json]:
    return build(K8S / "base")


@pytest.fixture
def resources(built: list[Json]) -> list[Json]:
    return copy.deepcopy(built)


@pytest.fixture
def service(resources: list[Json]) -> Json:
    return next(r for r in resources if r["kind"] == "RayService")


def test_the_built_base_would_be_stored_run_and_answer(built: list[Json]) -> None:
    assert [r["kind"] for r in built] == ["Service", "RayService"]
    assert Validator(*KUBERNETES_VERSIONS).problems(built) == []


def test_the_schema_is_the_one_its_readme_names() -> None:
    readme = (K8S / "crds" / "README.md").read_text()
    rows = re.findall(r"\| `(\S+)` \| `([0-9a-f]{64})` \|", readme)
    assert len(rows) == 2
    for name, digest in rows:
        assert hashlib.sha256((K8S / "crds" / name).read_bytes()).hexdigest() == digest


def test_ray_is_the_version_that_the_project_pins(service: Json) -> None:
    pins = (REPOSITORY / "constraints.txt").read_text()
    assert f"ray=={service['spec']['rayClusterConfig']['rayVersion']}\n" in pins


def test_every_pod_is_unprivileged(service: Json) -> None:
    for template in templates(service):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert_drops_privileges(container["securityContext"])
    assert_drops_privileges(
        service["spec"]["rayClusterConfig"]["autoscalerOptions"]["securityContext"]
    )


def assert_drops_privileges(context: Json) -> None:
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_requests_equal_limits_and_shared_memory_fits_in_them(service: Json) -> None:
    for name, group in groups(service):
        container = ray_container(group)
        assert container["resources"]["requests"] == container["resources"]["limits"], name
        memory = to_bytes(container["resources"]["limits"]["memory"])
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        shm = volumes[mounts["/dev/shm"]]["emptyDir"]
        assert shm["medium"] == "Memory"
        object_store = int(group["rayStartParams"]["object-store-memory"])
        assert object_store < to_bytes(shm["sizeLimit"]) <= memory // 4, name


def to_bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([MG]i)", quantity).groups()
    return int(number) << {"Mi": 20, "Gi": 30}[unit]


def test_no_image_floats_and_no_secret_is_written_down(built: list[Json]) -> None:
    text = yaml.safe_dump_all(built)
    for image in re.findall(r"image: (\S+)", text):
        assert re.fullmatch(r"\S+:(?!latest)[\w.-]+", image), image
    assert not re.search(r"(?i)password|secret:|api[-_]key", text)


def in_cluster(path: str, value: object) -> Callable[[Json], None]:
    """A mutation: set the dotted `path` below rayClusterConfig (None deletes it)."""
    return lambda service: set_path(service["spec"]["rayClusterConfig"], path, value)


def in_serve_config(old: str, new: str) -> Callable[[Json], None]:
    """A mutation: replace text in serveConfigV2, which must contain it."""

    def mutate(service: Json) -> None:
        text = service["spec"]["serveConfigV2"]
        assert old in text
        service["spec"]["serveConfigV2"] = text.replace(old, new, 1)

    return mutate


def set_path(target: Any, path: str, value: object) -> None:  # noqa: ANN401 - dict or list
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in parents:
        target = target[part]
    if value is None:
        del target[last]
    else:
        target[last] = value


GPU_CONTAINER = "workerGroupSpecs.1.template.spec.containers.0"

MUTATIONS = {
    # the schema
    "misspelt key": (in_cluster("enableIntreeAutoscaling", True), "enableIntreeAutoscaling"),
    "misspelt key deep inside": (
        in_cluster(f"{GPU_CONTAINER}.imagePolicy", "Always"),
        "imagePolicy",
    ),
    "port as a string": (
        in_cluster(f"{GPU_CONTAINER}.ports.0.containerPort", "8080"),
        "not of type 'integer'",
    ),
    "CPU count as a number": (
        in_cluster("headGroupSpec.rayStartParams.num-cpus", 0),
        "not of type 'string'",
    ),
    "unknown upscaling mode": (in_cluster("autoscalerOptions.upscalingMode", "Fast"), "Fast"),
    "missing required field": (in_cluster("workerGroupSpecs.1.groupName", None), "groupName"),
    "default that does not fit": (
        in_cluster("workerGroupSpecs.1.maxReplicas", None),
        "2147483647 GPU pods",
    ),
    "two containers of one name": (
        lambda service: service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"][
            "containers"
        ].append({"name": "ray-head", "image": "x:1"}),
        "duplicate",
    ),
    "foreign manager": (
        lambda service: service["spec"].update(managedBy="me"),
        "managedBy field value",
    ),
    "label that is no string": (
        lambda service: service["metadata"]["labels"].update(tier=1),
        "not of type",
    ),
    # the operator
    "name too long": (
        lambda service: service["metadata"].update(name="q" * 48),
        "DNS-1035",
    ),
    "secret name without a mode": (in_cluster("authOptions", {"secretName": "x"}), "open"),
    "resources given twice": (
        in_cluster("workerGroupSpecs.0.rayStartParams.num-cpus", "1"),
        "beside `resources`",
    ),
    "pods restart under autoscaler v2": (
        in_cluster("headGroupSpec.template.spec.restartPolicy", "Always"),
        "restartPolicy",
    ),
    "no serve port on the head": (
        in_cluster("headGroupSpec.template.spec.containers.0.ports.4", None),
        "Serve Service",
    ),
    "gRPC published on every pod": (
        in_cluster("headGroupSpec.template.spec.containers.0.ports.0.name", "serve-grpc"),
        "without a router",
    ),
    "routers without the label that the Service selects": (
        in_cluster("workerGroupSpecs.0.template.metadata.labels", {}),
        "gRPC selects []",
    ),
    "fewer pods at most than at least": (
        in_cluster("workerGroupSpecs.1.maxReplicas", 0),
        "replicas",
    ),
    # Serve
    "not YAML": (in_serve_config("applications:", "applications: ["), "serveConfigV2"),
    "key given twice": (
        in_serve_config("num_cpus: 0", "num_cpus: 0\n          num_cpus: 1"),
        "twice",
    ),
    "unknown top-level key": (in_serve_config("proxy_location", "proxy_locations"), "unknown key"),
    "unknown HTTP option": (in_serve_config("port: 8000", "prot: 8000"), "unknown key"),
    "unknown application key": (in_serve_config("route_prefix", "route"), "unknown key"),
    "unknown actor option": (in_serve_config("num_cpus: 0", "num_cpu: 0"), "unknown key"),
    "bad proxy location": (in_serve_config("EveryNode", "Everywhere"), "proxy_location"),
    "no such builder": (in_serve_config("build_app", "build"), "build"),
    "unknown setting": (in_serve_config("num_routers", "num_router"), "did you mean 'num_routers'"),
    "setting of a wrong type": (in_serve_config("min_replicas: 1", "min_replicas: one"), "integer"),
    "no such deployment": (in_serve_config("name: Router", "name: Roter"), "does not exist"),
    "loopback in a pod": (
        in_serve_config("host: 0.0.0.0\n      http_port", "host: 127.0.0.1\n      http_port"),
        "unreachable",
    ),
    "another gRPC port": (in_serve_config("grpc_port: 9000", "grpc_port: 9001"), "serve-grpc"),
    "another HTTP port": (in_serve_config("http_port: 8000", "http_port: 8001"), "http_port"),
    "more ranks than GPUs in a pod": (
        in_serve_config("tensor_parallel_size: 2", "tensor_parallel_size: 4"),
        "in one pod",
    ),
    "more replicas than pods": (
        in_serve_config("max_replicas: 4", "max_replicas: 5"),
        "do not fit",
    ),
    "routers anywhere": (in_serve_config("router: 1", "router: 0"), "gRPC is published on"),
    "more routers than router pods": (
        in_serve_config("num_routers: 2", "num_routers: 5"),
        "routers",
    ),
    "grace shorter than the drain": (
        in_cluster("workerGroupSpecs.1.template.spec.terminationGracePeriodSeconds", 5),
        "cuts off",
    ),
}


@pytest.mark.parametrize(("mutate", "expected"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_broken_manifest_is_refused(
    mutate: Callable[[Json], None],
    expected: str,
    validator: Validator,
    resources: list[Json],
    service: Json,
) -> None:
    mutate(service)
    assert any(expected in problem for problem in validator.problems(resources))


def test_a_kind_without_a_schema_is_refused(validator: Validator, resources: list[Json]) -> None:
    resources.append({"apiVersion": "v1", "kind": "Servise", "metadata": {"name": "x"}})
    assert any("Couldn't find schema" in problem for problem in validator.problems(resources))
