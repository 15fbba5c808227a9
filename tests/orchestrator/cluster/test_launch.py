"""The launch templates: what checks the real thing would make of them, and what they name."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml
from support.real_sweeps import REPOSITORY

from orchestrator.config.compose import compose_config

LAUNCH = REPOSITORY / "launch"

# KubeRay's published definition of a RayJob is over a megabyte, and we found no package of PyPI,
# npm or Debian that carries it (2026-11). This is no copy of it, but what it says (ray.io/v1, of
# KubeRay 1.2 and later) of every field that the template uses or its readers may add: names, types,
# and what is required in the strictest of those versions. A field that is not named here is a
# mistake, as it is for `kubectl apply --validate=strict`. What it says of pods is Kubernetes' own
# definition of them: tests/cluster/test_manifest.py takes that from PyPI.
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_INTEGER = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}  # int32; we need none below 0
_NUMBER = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)"
_QUANTITIES = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": rf"^[+-]?{_NUMBER}([KMGTPE]i|[numkMGTPE]|[eE][+-]?{_NUMBER})?$",
    },
}


def _closed(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


_TEXT = {"type": "string"}
_CONTAINER = _closed(
    ("name", "image"),
    name=_TEXT,
    image=_TEXT,
    env={"type": "array", "items": _closed(("name",), name=_TEXT, value=_TEXT)},
    envFrom={
        "type": "array",
        "items": _closed(secretRef=_closed(("name",), name=_TEXT)),
    },
    resources=_closed(requests=_QUANTITIES, limits=_QUANTITIES),
)
_TEMPLATE = _closed(
    ("spec",),
    spec=_closed(
        ("containers",),
        containers={"type": "array", "items": _CONTAINER, "minItems": 1},
        terminationGracePeriodSeconds=_INTEGER,
    ),
)
_HEAD = _closed(
    ("rayStartParams", "template"),
    template=_TEMPLATE,
    rayStartParams=_TEXTS,
    serviceType=_TEXT,
    enableIngress={"type": "boolean"},
    headService={"type": "object"},
)
_WORKERS = _closed(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=_TEXT,
    replicas=_INTEGER,
    minReplicas=_INTEGER,
    maxReplicas=_INTEGER,
    idleTimeoutSeconds=_INTEGER,
    numOfHosts=_INTEGER,
    rayStartParams=_TEXTS,
    suspend={"type": "boolean"},
    scaleStrategy={"type": "object"},
    template=_TEMPLATE,
)
_CLUSTER = _closed(
    ("headGroupSpec",),
    rayVersion=_TEXT,
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions={"type": "object"},
    headServiceAnnotations=_TEXTS,
    suspend={"type": "boolean"},
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)
RAY_JOB = _closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_closed(("name",), name=_TEXT, namespace=_TEXT, labels=_TEXTS),
    spec=_closed(
        ("entrypoint",),
        activeDeadlineSeconds=_INTEGER,
        backoffLimit=_INTEGER,
        clusterSelector=_TEXTS,
        entrypoint=_TEXT,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        entrypointResources=_TEXT,
        jobId=_TEXT,
        metadata=_TEXTS,
        rayClusterSpec=_CLUSTER,
        runtimeEnvYAML=_TEXT,
        shutdownAfterJobFinishes={"type": "boolean"},
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
        submitterConfig=_closed(backoffLimit=_INTEGER),
        submitterPodTemplate=_TEMPLATE,
        suspend={"type": "boolean"},
        ttlSecondsAfterFinished=_INTEGER,
    ),
)


def load(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((LAUNCH / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_ray_takes_the_cluster() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load("ray-cluster.yaml")
    validate_config(config)
    validate_config(prepare_config(config))
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert sum(kind.get("min_workers", 0) for kind in types.values()) <= config["max_workers"]


def test_a_mistake_in_the_cluster_is_found() -> None:
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(jsonschema.ValidationError, match="min_worker_count"):
        validate_config(load("ray-cluster.yaml") | {"min_worker_count": 1})


def test_kuberay_takes_the_job() -> None:
    job = load("rayjob.yaml")
    jsonschema.validate(job, RAY_JOB)
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert all(g["minReplicas"] <= g["replicas"] <= g["maxReplicas"] for g in groups)
    for group in groups:
        pod = group["template"]["spec"]
        drain = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        drain_s = int(drain["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert drain_s < pod["terminationGracePeriodSeconds"], "Kubernetes would kill it before"


@pytest.mark.parametrize(
    ("place", "wrong", "said"),
    [
        (("spec",), {"backofLimit": 5}, "backofLimit"),
        (("spec",), {"backoffLimit": "5"}, "'5' is not of type 'integer'"),
        (("spec", "rayClusterSpec", "headGroupSpec"), {"rayStartParams": {"num-cpus": 0}}, "0 is"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0), {"replicas": 2.5}, "2.5 is not"),
        (
            (
                *("spec", "rayClusterSpec", "workerGroupSpecs", 0),
                *("template", "spec", "containers", 0, "resources", "limits"),
            ),
            {"memory": "32GB"},
            "'32GB' does not match",
        ),
    ],
)
def test_a_mistake_in_the_job_is_found(
    place: tuple[Any, ...], wrong: dict[str, Any], said: str
) -> None:
    job = load("rayjob.yaml")
    part: Any = job
    for step in place:
        part = part[step]
    part.update(wrong)
    with pytest.raises(jsonschema.ValidationError, match=re.escape(said)):
        jsonschema.validate(job, RAY_JOB)


def test_the_job_is_for_the_ray_that_is_locked() -> None:
    locked = re.search(r"^ray==(\S+)", (REPOSITORY / "requirements.lock").read_text(), re.M)
    assert locked
    assert load("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == locked[1]


def test_the_batch_script_is_sound() -> None:
    script = LAUNCH / "sweep.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    head, *rest = script.read_text().splitlines()
    assert head.startswith("#!")
    directives = [number for number, line in enumerate(rest) if line.startswith("#SBATCH ")]
    commands = [n for n, line in enumerate(rest) if line and not line.startswith("#")]
    assert max(directives) < min(commands), "Slurm reads none after the first command"


def commands() -> list[str]:
    """The overrides of each command for a cluster that the templates and README show."""
    found = []
    for path in (*sorted(LAUNCH.iterdir()), REPOSITORY / "README.md"):
        text = re.sub(r" ?\\?\n#? +(?=[a-z_.]+=)", " ", path.read_text())
        found += re.findall(r"-m orchestrator ((?:[\w.]+=\S+ ?)+)", text)
    return [words for words in found if "cluster=ray" in words]


@pytest.mark.parametrize("words", commands())
def test_the_commands_compose(words: str) -> None:
    compose_config([word.strip("'\"") for word in words.split() if "$" not in word])


def test_every_command_was_looked_at() -> None:
    assert len(commands()) == 5
