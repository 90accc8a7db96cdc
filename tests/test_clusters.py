"""The recipes in examples/clusters/: valid by the operators' schemas, and their numbers agree with each other."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt2core.params import load_params, read_values

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples/clusters"
TRAININGS = ["slurm-pretrain.sbatch", "kubernetes-job.yaml", "kubernetes-trainjob.yaml"]


def text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text(name)))


def launcher(name: str) -> str:
    """The `pretrain.launcher` that the comment at the top names, without its line break."""
    (found,) = re.findall(r"^# +pretrain\.launcher: (.*(?:\n#       .*)?)$", text(name), re.MULTILINE)
    return re.sub(r"\n# +", " ", found)


def options(name: str) -> dict[str, str]:
    """The options for sbatch."""
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", text(name), re.MULTILINE))


def script(name: str) -> str:
    """The program of a manifest's container."""
    spec = documents(name)[-1]["spec"]
    container = spec["trainer"] if "trainer" in spec else spec["template"]["spec"]["containers"][0]
    assert container["command"] == ["bash", "-c"]
    return container["args"][0]


@pytest.mark.parametrize("name", TRAININGS)
def test_the_params_allow_the_launcher(name: str, tmp_path: Path) -> None:
    params = read_values(ROOT / "profiles/gpt2-124m.yaml")
    params["pretrain"] |= {"batch_size": 512, "launcher": launcher(name)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert load_params(tmp_path / "params.yaml").pretrain.launcher == launcher(name)


@pytest.mark.parametrize("name", TRAININGS[1:])
def test_all_nodes_run_the_same_command(name: str) -> None:
    """The first one by DVC, the others by themselves."""
    (by_hand,) = re.findall(r"exec (torchrun .*) -m stages\.pretrain", script(name).replace("\\\n", ""))
    assert re.sub(" +", " ", by_hand) == launcher(name)


@pytest.mark.parametrize("path", [*FOLDER.glob("*.sbatch"), *FOLDER.glob("*.sh")], ids=lambda path: path.name)
def test_the_scripts_are_bash(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("name", TRAININGS[1:])
def test_the_programs_of_the_pods_are_bash(name: str) -> None:
    subprocess.run(["bash", "-n"], input=script(name), text=True, check=True)


def test_slurm_starts_the_nodes_that_the_launcher_names() -> None:
    found = options("slurm-pretrain.sbatch")
    command = launcher("slurm-pretrain.sbatch")
    assert f"--nnodes={found['nodes']} " in command
    assert f"--nproc-per-node={found['gpus-per-node']} " in command
    (variable,) = re.findall(r"\$(\w+)", command)
    assert re.search(rf"^{variable}=.*SLURM_JOB_NODELIST", text("slurm-pretrain.sbatch"), re.MULTILINE)
    assert re.search(rf"^export .*\b{variable}\b", text("slurm-pretrain.sbatch"), re.MULTILINE)


def test_the_pods_find_each_other() -> None:
    service, job = documents("kubernetes-job.yaml")
    assert (service["kind"], job["kind"], job["spec"]["completionMode"]) == ("Service", "Job", "Indexed")
    pod = job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    # The first pod's name in DNS is JOB-0.SERVICE, where the pods' subdomain is the service's name.
    assert pod["subdomain"] == service["metadata"]["name"]
    command = launcher("kubernetes-job.yaml")
    assert f"--rdzv-endpoint={job['metadata']['name']}-0.{pod['subdomain']}:" in command
    assert f"--nnodes={job['spec']['completions']} " in command
    assert job["spec"]["parallelism"] == job["spec"]["completions"]
    (container,) = pod["containers"]
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']} " in command
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_kubernetes_allows_the_job() -> None:
    """By its published schema; an unknown key is an error."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for document in documents("kubernetes-job.yaml"):
        kubernetes_validate.validate(document, "1.33", strict=True)


def test_kubeflow_allows_the_trainjob() -> None:
    """By its client's models, which drop a key that they do not know."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    (job,) = documents("kubernetes-trainjob.yaml")
    assert models.TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job
    trainer, command = job["spec"]["trainer"], launcher("kubernetes-trainjob.yaml")
    assert command == f"torchrun --nnodes={trainer['numNodes']} --nproc-per-node={trainer['numProcPerNode']}"
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == trainer["numProcPerNode"]
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_ray_cluster_runs_the_pipeline() -> None:
    """No package has KubeRay's schema: the pods are checked by that of Kubernetes."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    (job,) = documents("kubernetes-rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    assert (job["apiVersion"], job["kind"], job["spec"]["submissionMode"]) == ("ray.io/v1", "RayJob", "HTTPMode")
    assert "GPT2CORE_RAY=auto dvc repro" in job["spec"]["entrypoint"]
    assert f"ray=={cluster['rayVersion']} " in (ROOT / "requirements-peers.lock").read_text(encoding="utf-8")
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, "1.33", strict=True)
        (container,) = pod["spec"]["containers"]
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/project"]
        assert {"name": "DVC_ROOT", "value": "/project"} in container["env"]


@pytest.mark.parametrize(
    ("lines", "task", "message"),
    [
        (None, "1", "usage: sbatch"),
        ("--name a -S seed=1\n", "2", "line 2 has no --name"),
        ("-S seed=1\n", "1", "no --name"),
    ],
)
def test_an_array_task_without_an_experiment(lines: str | None, task: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "experiments.txt"
    if lines is not None:
        path.write_text(lines)
    env = os.environ | {"SLURM_ARRAY_TASK_ID": task, "SLURM_SUBMIT_DIR": str(tmp_path)}
    command = ["bash", FOLDER / "slurm-experiments.sbatch", path]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize("argument", [[], ["0"], ["two"]])
def test_a_wrong_number_of_gpus(argument: list[str]) -> None:
    result = subprocess.run([FOLDER / "queue_gpus.sh", *argument], capture_output=True, text=True, timeout=60)
    assert (result.returncode, "usage: queue_gpus.sh N" in result.stderr) == (2, True)
