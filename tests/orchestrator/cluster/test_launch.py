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
OVERRIDES = ('"${OVERRIDES[@]}"', "sweep=asha")  # as launch/sweep.sbatch hands them over

# KubeRay's published definition of a RayJob is over a megabyte, and we found no package of PyPI,
# npm or Debian that carries it (2026-11). This is no copy of it, but what it says (ray.io/v1, of
# KubeRay 1.2 and later) of every field that the template uses or its readers may add: names, types,
# and what is required in the strictest of those versions, compared with rayjob_types.go and
# raycluster_types.go of ray-project/kuberay at 0057210 and 026f143. A field that is not named here
# is a mistake, as it is for `kubectl apply --validate=strict`. Ray's own reader of a cluster on
# Kubernetes (below) is asked, too. What it says of pods is Kubernetes' own
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


def read_by_ray(cluster: dict[str, Any]) -> dict[str, Any]:
    """What Ray's autoscaler makes of a RayCluster: its node types, with their resources."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    found = autoscaling_config._derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "sweep", "namespace": "default"}, "spec": cluster}
    )
    types = found["available_node_types"]
    assert isinstance(types, dict)
    return types


def test_the_jobs_nodes_have_the_resources_that_the_sweep_needs() -> None:
    types = read_by_ray(load("rayjob.yaml")["spec"]["rayClusterSpec"])
    assert types["headgroup"]["resources"]["CPU"] == 0, "the head trains nothing"
    workers = [kind for name, kind in types.items() if name != "headgroup"]
    assert workers
    for kind in workers:
        assert kind["resources"]["GPU"] >= 1  # the entrypoint says engine.gpus_per_trial=1
        assert kind["resources"]["CPU"] >= 1
        assert kind["min_workers"] >= 1


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("rayStartParams", {"num-cpus": "two"}),
        ("rayStartParams", {"num-gpus": "1 GPU"}),
    ],
)
def test_ray_refuses_a_mistake_in_the_jobs_workers(part: str, wrong: object) -> None:
    cluster = load("rayjob.yaml")["spec"]["rayClusterSpec"]
    cluster["workerGroupSpecs"][0][part] = wrong
    with pytest.raises((TypeError, ValueError)):
        read_by_ray(cluster)


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


def commands() -> list[tuple[str, str]]:
    """(file, overrides) of each command for a cluster that the templates show."""
    found = []
    for path in sorted(LAUNCH.iterdir()):  # what pages say is read by tests/test_docs.py
        text = re.sub(r" ?\\?\n#? +(?=[a-z_.]+=)", " ", path.read_text())
        shown = re.findall(r"-m orchestrator ((?:[\w.]+=\S+ ?)+)", text.replace(*OVERRIDES))
        found += [(path.name, words) for words in shown if "cluster=ray" in words]
    return found


@pytest.mark.parametrize(("where", "words"), commands())
def test_the_commands_compose(where: str, words: str) -> None:
    compose_config([word.strip("'\"") for word in words.split() if "$" not in word])


def test_a_command_was_found_in_each_file_that_joins_a_cluster() -> None:
    joins = {path.name for path in LAUNCH.iterdir() if "cluster=ray" in path.read_text()}
    assert {where for where, _ in commands()} == joins
    assert len(joins) == len(list(LAUNCH.iterdir()))
