"""The pods of the RayJob against Kubernetes' published definitions, as PyPI carries them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.objects import PYTHON
from support.real_sweeps import REPOSITORY

pytestmark = pytest.mark.cluster

VERSIONS = ("1.25.0", "1.30.0", "1.37.0")
_CHECK = """
import json, sys, kubernetes_validate
kubernetes_validate.validate(json.load(sys.stdin), sys.argv[1], strict=True)
"""


def pods() -> dict[str, Any]:
    """Group -> the pod that KubeRay makes of its template."""
    job = yaml.safe_load((REPOSITORY / "launch" / "rayjob.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    groups = {"head": cluster["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {
        name: {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **group["template"]}
        for name, group in groups.items()
    }


Validate = Callable[[Any, str], str]


@pytest.fixture(scope="module")
def validate() -> Validate:
    """What a version of Kubernetes says against a manifest; nothing where it takes it."""
    if not (Path(PYTHON).exists() and not _run("import kubernetes_validate", "")):
        pytest.skip("kubernetes-validate is not installed (`make test-cluster` does it, from PyPI)")
    return lambda manifest, version: _run(_CHECK, json.dumps(manifest), version)


def _run(code: str, given: str, *words: str) -> str:
    command = [str(PYTHON), "-c", code, *words]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("group", pods())
def test_kubernetes_takes_the_pods(validate: Validate, group: str, version: str) -> None:
    assert not validate(pods()[group], version)


def test_a_mistake_in_a_pod_is_found(validate: Validate) -> None:
    pod = pods()["gpu"]
    pod["spec"]["terminationGracePeriod"] = 120
    assert "terminationGracePeriod" in validate(pod, VERSIONS[-1])
