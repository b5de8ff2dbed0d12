"""The built manifests, and everything an API server and the KubeRay operator would say of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.k8s import operator_rules, serve_config
from tests.k8s.crd import StrictSchema

Json = dict[str, Any]

REPOSITORY = Path(__file__).parents[2]
K8S = REPOSITORY / "k8s"
KUBERNETES_VERSIONS = ("1.34", "1.35", "1.36", "1.37")


def build(directory: Path) -> list[Json]:
    """What `kubectl apply -k directory` would send."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", directory], capture_output=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


class Validator:
    """Judges whole manifest sets; a kind without a schema is a problem, never a warning."""

    def __init__(self, *kubernetes_versions: str) -> None:
        self._versions = kubernetes_versions
        self._rayservice = StrictSchema(K8S / "crds" / "ray.io_rayservices.yaml", "v1")

    def problems(self, resources: list[Json]) -> list[str]:
        """Empty when every resource would be stored, run and answer."""
        stored = [self._stored(resource) for resource in resources]
        found = [problem for resource in stored for problem in self._schema_problems(resource)]
        for resource in stored:
            if self._is_rayservice(resource) and not found:
                found += operator_rules.problems(resource)
                found += serve_config.problems(resource)
                found += operator_rules.grpc_service_problems(resource, resources)
        return found

    def _is_rayservice(self, resource: Json) -> bool:
        served = (self._rayservice.api_version, self._rayservice.kind)
        return (resource.get("apiVersion"), resource.get("kind")) == served

    def _stored(self, resource: Json) -> Json:
        return self._rayservice.stored(resource) if self._is_rayservice(resource) else resource

    def _schema_problems(self, resource: Json) -> list[str]:
        if not self._is_rayservice(resource):
            return self._builtin_problems(resource)
        found = self._rayservice.problems(resource)
        # The CRD knows `metadata` only as an object, and pod templates without their own rules.
        found += self._builtin_problems(_bare("ConfigMap", resource.get("metadata")))
        if not found:
            for template in operator_rules.templates(resource):
                pod = _bare("Pod", template["metadata"]) | {"spec": template["spec"]}
                found += self._builtin_problems(pod)
        return found

    def _builtin_problems(self, resource: Json) -> list[str]:
        found = []
        for version in self._versions:
            try:
                kubernetes_validate.validate(resource, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(str(part) for part in error.absolute_path)
                found.append(f"{version}: {path}: {error.message}")
            except kubernetes_validate.SchemaNotFoundError as error:
                found.append(f"{version}: {error.message}")
        return found


def _bare(kind: str, metadata: object) -> Json:
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata}
