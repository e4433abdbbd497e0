"""deploy/kuberay offline: KubeRay's schemas, Kubernetes' own, kustomize, and that nothing is open."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.deploy import manifests as m
from tests.deploy.manifests import KUBERAY, OVERLAYS, ROOT, Manifest

needs_kustomize = pytest.mark.skipif(not m.has_kustomize(), reason="kubectl is missing: overlays are not built")
needs_crds = pytest.mark.skipif(
    m.crds() is None, reason="KubeRay's definitions are missing (WMRL_KUBERAY_CRDS): the model stands for them"
)
SOURCES = ["base", *(pytest.param(overlay, marks=needs_kustomize) for overlay in OVERLAYS)]


def documents(source: str) -> list[Manifest]:
    return m.base() if source == "base" else m.render(source)


def of_ray(found: list[Manifest]) -> list[Manifest]:
    return [document for document in found if document["apiVersion"] == "ray.io/v1"]


@pytest.mark.parametrize("source", SOURCES)
def test_the_schema_of_kuberay_takes_every_manifest(source: str) -> None:
    checked = of_ray(documents(source))
    assert checked
    for manifest in checked:
        assert m.schema_errors(manifest, m.model()[manifest["kind"]]) == []
        if m.crds() is not None:
            assert m.schema_errors(manifest, m.full_schema(manifest["kind"])) == []


@needs_kustomize
@needs_crds
def test_the_model_is_cut_from_kuberays_own_schemas() -> None:
    """To make it anew: WMRL_WRITE_MODEL=1."""
    import os

    found = [document for overlay in OVERLAYS for document in of_ray(m.render(overlay))]
    kinds = {kind: [d for d in found if d["kind"] == kind] for kind in ("RayCluster", "RayJob")}
    made = {kind: m.trimmed(m.full_schema(kind), of_kind) for kind, of_kind in kinds.items()}
    if os.environ.get("WMRL_WRITE_MODEL"):
        m.MODEL.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    assert m.model() == made


def first_group(spec: Manifest) -> Manifest:
    return spec["workerGroupSpecs"][0]


def pod_of(spec: Manifest) -> Manifest:
    return first_group(spec)["template"]["spec"]


def put(place: Callable[[Manifest], Manifest], key: str, value: Any) -> Callable[[Manifest], None]:
    def change(spec: Manifest) -> None:
        place(spec)[key] = value

    return change


def drop(place: Callable[[Manifest], Manifest], key: str) -> Callable[[Manifest], None]:
    def change(spec: Manifest) -> None:
        del place(spec)[key]

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (put(lambda s: s, "workerGroupSpec", []), "workerGroupSpec"),
        (put(first_group, "maxReplica", 3), "maxReplica"),
        (put(first_group, "maxReplicas", "three"), "three"),
        (drop(first_group, "groupName"), "groupName"),
        (put(lambda s: s["authOptions"], "mode", "tokens"), "tokens"),
        (put(lambda s: pod_of(s)["containers"][0], "imgae", "x"), "imgae"),
    ],
)
def test_a_typo_in_a_ray_manifest_is_found(change: Callable[[Manifest], None], complaint: str) -> None:
    (cluster,) = (d for d in m.base() if d["kind"] == "RayCluster")
    cluster = copy.deepcopy(cluster)
    change(cluster["spec"])
    schemas = [m.model()["RayCluster"], *([m.full_schema("RayCluster")] if m.crds() is not None else [])]
    for schema in schemas:
        errors = m.schema_errors(cluster, schema)
        assert len(errors) == 1
        assert complaint in errors[0]


@pytest.mark.parametrize("source", SOURCES)
def test_kubernetes_own_schemas_take_the_rest(source: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    checked = [d for d in documents(source) if d["apiVersion"] in ("v1", "networking.k8s.io/v1")]
    assert {d["kind"] for d in checked} == {"NetworkPolicy", "PersistentVolumeClaim"}
    for document in checked:
        kubernetes_validate.validate(document, "1.32", strict=True)
    broken = copy.deepcopy(next(d for d in checked if d["kind"] == "NetworkPolicy"))
    broken["spec"]["ingres"] = broken["spec"].pop("ingress")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.32", strict=True)


# -- safety ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_open_and_nothing_is_without_a_limit(source: str) -> None:
    for manifest in documents(source):
        assert m.faults(manifest) == [], manifest["kind"]


@pytest.mark.parametrize("source", SOURCES)
def test_every_pod_is_behind_the_network_policy_and_sees_the_storage(source: str) -> None:
    found = {d["kind"]: d for d in documents(source)}
    selected = found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    claim = found["PersistentVolumeClaim"]["metadata"]["name"]
    for manifest in found.values():
        if (spec := m.cluster_spec(manifest)) or manifest["kind"] == "RayCluster":
            assert spec is not None
            for _, group in m.groups(spec):
                assert selected.items() <= group["template"]["metadata"]["labels"].items()
                volumes = group["template"]["spec"]["volumes"]
                assert [v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v] == [claim]


def container(spec: Manifest) -> Manifest:
    return pod_of(spec)["containers"][0]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (put(lambda s: s["authOptions"], "mode", "disabled"), "no token"),
        (drop(lambda s: s["authOptions"], "secretName"), "no token"),
        (put(lambda s: s["headGroupSpec"], "serviceType", "LoadBalancer"), "reachable from outside"),
        (put(lambda s: s["headGroupSpec"], "enableIngress", True), "reachable from outside"),
        (put(pod_of, "hostNetwork", True), "hostNetwork"),
        (put(pod_of, "hostPID", True), "hostPID"),
        (put(pod_of, "automountServiceAccountToken", True), "automountServiceAccountToken"),
        (drop(pod_of, "automountServiceAccountToken"), "automountServiceAccountToken"),
        (drop(pod_of, "securityContext"), "runs as root"),
        (put(lambda s: pod_of(s)["securityContext"], "runAsUser", 0), "runs as root"),
        (put(lambda s: pod_of(s)["securityContext"], "seccompProfile", {"type": "Unconfined"}), "seccompProfile"),
        (put(lambda s: pod_of(s)["volumes"][1], "hostPath", {"path": "/"}), "hostPath"),
        (put(lambda s: pod_of(s)["volumes"][3], "emptyDir", {"sizeLimit": "1Gi"}), "/dev/shm"),
        (put(lambda s: pod_of(s)["volumes"][2], "emptyDir", {}), "no sizeLimit"),
        (drop(lambda s: container(s)["resources"]["limits"], "memory"), "no limit of memory"),
        (drop(lambda s: container(s)["resources"], "limits"), "no limit of cpu"),
        (put(lambda s: container(s)["securityContext"], "privileged", True), "privileges"),
        (drop(lambda s: container(s)["securityContext"], "allowPrivilegeEscalation"), "privileges"),
        (
            put(lambda s: container(s)["securityContext"], "capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
            "capabilities",
        ),
        (put(lambda s: container(s)["ports"][0], "hostPort", 8080), "hostPort"),
        (put(lambda s: container(s), "env", [{"name": "RAY_AUTH_TOKEN", "value": "x"}]), "a token in RAY_AUTH_TOKEN"),
        (drop(lambda s: s["autoscalerOptions"], "resources"), "autoscaler: no limit of cpu"),
        (put(lambda s: first_group(s)["template"], "metadata", {"labels": {}}), "the NetworkPolicy selects"),
    ],
)
def test_a_planted_hole_is_found(change: Callable[[Manifest], None], complaint: str) -> None:
    (cluster,) = (d for d in m.base() if d["kind"] == "RayCluster")
    cluster = copy.deepcopy(cluster)  # also undoes the sharing of YAML's anchors
    cluster = json.loads(json.dumps(cluster))
    change(cluster["spec"])
    assert any(complaint in fault for fault in m.faults(cluster)), m.faults(cluster)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s["ingress"].append({}), "from pods that nobody named"),
        (lambda s: s["ingress"].append({"from": [{"namespaceSelector": {}}]}), "from pods that nobody named"),
        (lambda s: s["ingress"][1].pop("ports"), "all ports to pods of others"),
        (lambda s: s["policyTypes"].remove("Egress"), "not both directions"),
        (lambda s: s["egress"].append({}), "everywhere"),
        (lambda s: s["egress"][2]["to"][0]["ipBlock"].pop("except"), "metadata service"),
        (lambda s: s["podSelector"].update(matchLabels={"app": "x"}), "not our pods"),
    ],
)
def test_a_hole_in_the_network_policy_is_found(change: Callable[[Manifest], Any], complaint: str) -> None:
    (policy,) = (d for d in m.base() if d["kind"] == "NetworkPolicy")
    policy = copy.deepcopy(policy)
    change(policy["spec"])
    assert any(complaint in fault for fault in m.faults(policy)), m.faults(policy)


@pytest.mark.parametrize("kind", ["Secret", "Service", "Ingress"])
def test_kinds_that_open_something_are_refused(kind: str) -> None:
    assert m.faults({"kind": kind, "apiVersion": "v1", "spec": {}})


# -- what the overlays are for ----------------------------------------------------------------------------------------------


def by_name(overlay: str) -> dict[str, Manifest]:
    (manifest,) = of_ray(m.render(overlay))
    spec = m.cluster_spec(manifest)
    assert spec is not None
    return dict(m.groups(spec))


@needs_kustomize
@pytest.mark.parametrize("name", ["cpu", "gpu", "spot"])
def test_a_job_has_the_cluster_of_its_overlay_and_no_other(name: str) -> None:
    (cluster,) = of_ray(m.render(f"overlays/{name}"))
    (job,) = of_ray(m.render(f"jobs/{name}"))
    assert (cluster["kind"], job["kind"]) == ("RayCluster", "RayJob")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


@needs_kustomize
def test_gpus_are_asked_for_by_learners_alone_and_only_when_needed() -> None:
    for overlay in ("overlays/gpu", "overlays/spot"):
        gpus = {
            name: "nvidia.com/gpu" in json.dumps(group["template"]["spec"]["containers"])
            for name, group in by_name(overlay).items()
        }
        assert gpus == {"head": False, "runners": False, "learners": True}
        assert by_name(overlay)["learners"]["minReplicas"] == 0
    assert not any("nvidia" in json.dumps(group) for group in by_name("overlays/cpu").values())


@needs_kustomize
def test_workers_may_be_taken_away_but_not_the_head() -> None:
    found = by_name("overlays/spot")
    for name in ("runners", "learners"):
        pod = found[name]["template"]["spec"]
        assert pod["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
        assert pod["terminationGracePeriodSeconds"] >= 60
    terms = found["head"]["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert terms["nodeSelectorTerms"][0]["matchExpressions"][0]["operator"] == "NotIn"


@pytest.mark.parametrize(
    "source", ["base", *(pytest.param(f"jobs/{n}", marks=needs_kustomize) for n in ("cpu", "gpu", "spot"))]
)
def test_the_jobs_entry_point_is_a_command_of_ours_that_resumes_on_shared_storage(source: str, wmrl_options: Any) -> None:
    (job,) = (d for d in documents(source) if d["kind"] == "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "wmrl_ray"]
    wmrl_options(words[3:])
    assert {"--resume", "--take-over"} <= set(words)  # every retry is another pod
    assert words[words.index("--run-dir") + 1].startswith("/storage/")
    assert job["spec"]["backoffLimit"] >= 1
    assert set(yaml.safe_load(job["spec"]["runtimeEnvYAML"])) <= {"env_vars", "working_dir", "pip"}


def test_the_submitted_command_of_the_readme_is_the_gpu_jobs(wmrl_options: Any) -> None:
    text = (ROOT / "deploy" / "README.md").read_text().replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.startswith("wmrl job submit "))
    words = shlex.split(line)
    words = words[words.index("--") + 1 :]
    wmrl_options(words)
    kustomization = yaml.safe_load((KUBERAY / "jobs" / "gpu" / "kustomization.yaml").read_text())
    (patch,) = (p["patch"] for p in kustomization["patches"] if p["target"]["kind"] == "RayJob")
    (entry,) = (one["value"] for one in yaml.safe_load(patch) if one["path"] == "/spec/entrypoint")
    assert words == shlex.split(entry)[3:]


def test_ray_has_the_version_of_the_constraints() -> None:
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    (cluster,) = (d for d in m.base() if d["kind"] == "RayCluster")
    assert cluster["spec"]["rayVersion"] == pinned.removeprefix("ray==")
    assert f"rayproject/ray:{pinned.removeprefix('ray==')}-" in (ROOT / "docker" / "Dockerfile").read_text()


def test_no_file_of_deploy_or_docker_names_a_host_of_images_or_a_token() -> None:
    for file in [*(ROOT / "deploy").rglob("*.*"), *(ROOT / "docker").rglob("*")]:
        text = file.read_text()
        assert not any(host in text for host in ("docker.io", "ghcr.io", "quay.io", "gcr.io", "amazonaws.com")), file
    assert KUBERAY.is_dir()
