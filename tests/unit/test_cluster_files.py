"""The files of cluster/ against the schemas of those who will read them. None has been applied to a
cloud by a test.

`ray up` files: Ray's own validation, and what they ask of a machine against the API models of EC2
(botocore) and Compute Engine (google-api-python-client). Kubernetes: pods and claims against the
schema of Kubernetes (kubernetes-validate), RayCluster and RayJob against ours of KubeRay's fields
(kuberay_schema.py tells why ours). An unknown field is an error everywhere.
"""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer.main
import yaml

from raysft import __version__
from raysft.carriers.local import entrypoint
from raysft.cli.app import app
from raysft.config.load import load_config
from tests.unit.kuberay_schema import SCHEMAS

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY_UP = ("aws.yaml", "gcp.yaml")
KUBERAY = ("kuberay-cluster.yaml", "kuberay-job.yaml")
SCRIPTS = [*sorted(CLUSTER.glob("*.sh")), ROOT / ".ci/run"]
KUBERNETES = "1.32"  # an older one knows fewer fields
PINNED = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def text_of(name: str) -> str:
    return (CLUSTER / name).read_text()


def load(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text_of(name)))


def prepared(name: str) -> dict[str, Any]:
    """The file with Ray's defaults, as `ray up` works with it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load(name))
    validate_config(config)
    return dict(config)


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts(name: str) -> None:
    config = prepared(name)
    workers = config["available_node_types"]["worker"]
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert workers["min_workers"] == workers["max_workers"] == config["max_workers"]
    assert workers["resources"]["GPU"] >= 1
    for local in config["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists(), local


def test_ec2_accepts_the_machines() -> None:
    from botocore.loaders import Loader
    from botocore.model import ServiceModel
    from botocore.validate import ParamValidator

    model = ServiceModel(Loader().load_service_model("ec2", "service-2"), "ec2")
    wanted = model.operation_model("RunInstances").input_shape
    for node in load("aws.yaml")["available_node_types"].values():
        request = node["node_config"] | {"MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(request, wanted)
        assert not report.has_errors(), report.generate_report()


def test_compute_engine_accepts_the_machines() -> None:
    import googleapiclient
    from ray.autoscaler._private.gcp.config import GCPNodeType, get_node_type

    folder = Path(googleapiclient.__file__).parent / "discovery_cache/documents"
    schemas = json.loads((folder / "compute.v1.json").read_text())["schemas"]
    for node in load("gcp.yaml")["available_node_types"].values():
        assert get_node_type(node["node_config"]) is GCPNodeType.COMPUTE
        problems = list(unlike(node["node_config"], schemas["Instance"], schemas, "node_config"))
        assert not problems, problems


def unlike(value: Any, schema: dict[str, Any], schemas: dict[str, Any], at: str) -> Iterator[str]:
    """Where a value does not follow a schema of Google's discovery documents."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    types = {"object": dict, "array": list, "string": (str, int), "boolean": bool, "integer": int}
    if not isinstance(value, types[schema["type"]]):  # 64-bit integers are strings there
        yield f"{at} is no {schema['type']}"
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{at} is none of {schema['enum']}"
    elif schema["type"] == "array":
        for index, item in enumerate(value):
            yield from unlike(item, schema["items"], schemas, f"{at}[{index}]")
    elif schema["type"] == "object":
        for key, item in value.items():
            known = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if known is None:
                yield f"{at} has no {key}"
            else:
                yield from unlike(item, known, schemas, f"{at}.{key}")


@pytest.mark.parametrize("name", RAY_UP)
def test_dashboard_is_for_a_tunnel_only(name: str) -> None:
    """Also not by Ray's defaults, which would open it."""
    config = prepared(name)
    assert "0.0.0.0" not in json.dumps(config)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert (
        "--autoscaling-config=~/ray_bootstrap_config.yaml" in config["head_start_ray_commands"][-1]
    )


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_accepts(name: str) -> None:
    resource = load(name)
    jsonschema.validate(resource, SCHEMAS[resource["kind"]])
    spec = cluster_spec(resource)
    for template in pod_templates(spec):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}} | template
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        containers = template["spec"]["containers"] + template["spec"].get("initContainers", [])
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        mounted = {m["name"] for c in containers for m in c["volumeMounts"]}
        assert mounted == volumes
        assert {c["image"] for c in containers} == {f"REGISTRY/raysft:{__version__}"}
        [claim] = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in template["spec"]["volumes"]
            if volume["name"] == "shared"
        ]
        assert claim == load("kuberay-storage.yaml")["metadata"]["name"]
        environment = {entry["name"]: entry.get("value") for entry in containers[0]["env"]}
        assert environment.items() >= HEALTH.items()
    assert spec["rayVersion"] == PINNED["ray"]
    assert spec["authOptions"]["mode"] == "token"
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    [workers] = spec["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]


def cluster_spec(resource: dict[str, Any]) -> dict[str, Any]:
    spec = resource["spec"]
    return dict(spec["rayClusterSpec"] if resource["kind"] == "RayJob" else spec)


def pod_templates(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_both_kuberay_files_describe_the_same_cluster() -> None:
    """But for the container that writes the run.json of the job."""
    cluster, job = (cluster_spec(load(name)) for name in KUBERAY)
    del job["headGroupSpec"]["template"]["spec"]["initContainers"]
    assert job == cluster


def test_kubernetes_accepts_the_storage() -> None:
    claim = load("kuberay-storage.yaml")
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_job_on_kubernetes_runs_what_its_first_container_planned() -> None:
    job = load("kuberay-job.yaml")["spec"]
    head, workers = pod_templates(job["rayClusterSpec"])
    [plan] = head["spec"]["initContainers"]
    raysft, verb, preset, name, *rest = plan["command"]
    assert (raysft, verb, rest[-1]) == ("raysft", "train", "--dry-run")
    config = load_config(preset, [word.removeprefix("--set=") for word in rest[:-1]])
    run_dir = Path(config.run.storage) / name.removeprefix("--name=")
    assert job["entrypoint"] == entrypoint(run_dir / "run.json")
    gpus = int(workers["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    replicas = job["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"]
    assert config.scaling.workers == gpus * replicas
    assert set(yaml.safe_load(job["runtimeEnvYAML"])) == {"env_vars"}


def test_slurm_runs_what_every_carrier_runs() -> None:
    text = text_of("slurm.sh")
    assert f"-- {entrypoint(Path('RUN'))} &".replace("RUN", '"$RUN_JSON"') in text
    # Without an address the run would start a Ray of its own.
    assert "export RAY_ADDRESS=$head" in text
    assert "0.0.0.0" not in text


@pytest.mark.parametrize("name", [*RAY_UP, "slurm.sh", "README.md"])
def test_lost_nodes_are_noticed_soon(name: str) -> None:
    found = dict(re.findall(r"(RAY_health_check_\w+)=(\d+)", text_of(name)))
    assert found == HEALTH


@pytest.mark.parametrize("name", [*RAY_UP, "slurm.sh", "Dockerfile"])
def test_token_is_asked_for(name: str) -> None:
    code = re.sub(r"(?m)^ *#.*$", "", text_of(name))
    assert "RAY_AUTH_MODE=token" in code
    if name in RAY_UP:
        assert "/home/ubuntu/.ray/auth_token" in load(name)["file_mounts"]
        # Each command is a shell of its own that reads ~/.bashrc.
        assert any("~/.bashrc" in c and "RAY_AUTH_MODE" in c for c in load(name)["setup_commands"])


@pytest.mark.parametrize("name", [*RAY_UP, "Dockerfile"])
def test_versions_are_those_of_the_constraints(name: str) -> None:
    text = text_of(name)
    installs = re.findall(r"pip install (?!.*--no-deps).*", text)
    assert installs
    assert all(re.search(r"--constraint \S*constraints\.txt", line) for line in installs)
    assert "==" not in text  # no version but those
    for provider in ("boto3", "google-api-python-client"):
        assert provider not in text or provider in PINNED


def test_image() -> None:
    text = text_of("Dockerfile")
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    [minor] = re.findall(r"^FROM python:3\.(\d+)-", text, re.MULTILINE)
    assert requires == ">=3.11,<3.13"
    assert int(minor) in (11, 12)
    assert f"REGISTRY/raysft:{__version__} ." in text
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = {
        word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()
    }
    assert copied == kept
    assert all((ROOT / path).exists() for path in copied)


def scripts_of(name: str) -> Iterator[str]:
    config = load(name)
    for part in (config, *config["available_node_types"].values()):
        for key in COMMANDS:
            yield from part.get(key, [])


@pytest.mark.parametrize("name", RAY_UP)
def test_commands_are_shell(name: str) -> None:
    for command in scripts_of(name):
        check_syntax(command)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_shell(script: Path) -> None:
    check_syntax(script.read_text())


def check_syntax(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="no shellcheck here: apt-get install shellcheck"
)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def documented() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text_of("README.md"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0] for line in lines if line.startswith("raysft ")]


@pytest.mark.parametrize("line", documented())
def test_documented_commands_exist(line: str) -> None:
    """With their options; nothing is run."""
    verb, *arguments = shlex.split(line)[1:]
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    command.make_context(verb, arguments)
