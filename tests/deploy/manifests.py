"""The manifests of deploy/kuberay as Kubernetes would see them, their schema, and what makes one unsafe."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
KUBERAY = ROOT / "deploy" / "kuberay"
OVERLAYS = ("overlays/cpu", "overlays/gpu", "overlays/spot", "jobs/cpu", "jobs/gpu", "jobs/spot")
MODEL = Path(__file__).parent / "kuberay_model.json"  # of the fields in use, cut from KubeRay's own schemas
Manifest = dict[str, Any]


def has_kustomize() -> bool:
    return shutil.which("kubectl") is not None


@functools.cache
def _rendered(overlay: str) -> str:
    done = subprocess.run(["kubectl", "kustomize", KUBERAY / overlay], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(overlay: str) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    return list(yaml.safe_load_all(_rendered(overlay)))


def base() -> list[Manifest]:
    """The files as they are, and the job with the cluster that kustomize would put into it."""
    files = [*sorted((KUBERAY / "base").glob("*.yaml")), KUBERAY / "job" / "rayjob.yaml"]
    documents = [document for file in files for document in yaml.safe_load_all(file.read_text())]
    found = {d["kind"]: d for d in documents if d["kind"] not in ("Kustomization", "Component")}
    found["RayJob"]["spec"]["rayClusterSpec"] = found["RayCluster"]["spec"]
    return list(found.values())


def cluster_spec(manifest: Manifest) -> Manifest | None:
    """Of a RayCluster or a RayJob; None for other kinds, and for a job that has none yet."""
    return {"RayCluster": manifest["spec"], "RayJob": manifest["spec"].get("rayClusterSpec")}.get(manifest["kind"])


def groups(spec: Manifest) -> Iterator[tuple[str, Manifest]]:
    yield "head", spec["headGroupSpec"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group


# -- schema ---------------------------------------------------------------------------------------------------------------


def crds() -> Path | None:
    """KubeRay's own definitions, where they lie beside the repository; WMRL_KUBERAY_CRDS names another place."""
    places = [Path(os.environ["WMRL_KUBERAY_CRDS"])] if "WMRL_KUBERAY_CRDS" in os.environ else []
    places += [parent / "shared" / "reference" / "crd" for parent in ROOT.parents]
    return next((place for place in places if (place / "rayclusters.yaml").is_file()), None)


@functools.cache
def full_schema(kind: str) -> Manifest:
    folder = crds()
    assert folder is not None
    text = (folder / f"{kind.lower()}s.yaml").read_text()
    definition = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def strict(schema: Any) -> Any:
    """A JSON Schema of what the API server would take: unknown keys refused, defaults filled in before `required` counts."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items() if key not in ("description", "default")}
    properties = schema.get("properties")
    if isinstance(properties, dict) and schema.get("type") == "object":
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
        given = [key for key in schema.get("required", []) if "default" not in properties.get(key, {})]
        found.pop("required", None)
        found |= {"required": given} if given else {}
    if schema.get("x-kubernetes-int-or-string"):
        found = {"type": ["integer", "string"]}
    if schema.get("nullable"):
        found["type"] = [found["type"], "null"]
    return {
        key: value for key, value in found.items() if not key.startswith("x-kubernetes") and key not in ("nullable", "format")
    }


def trimmed(schema: Manifest, documents: list[Any]) -> Manifest:
    """`schema` with the properties alone that the documents have; as strict as before."""
    found = dict(schema)
    if isinstance(schema.get("properties"), dict):
        used = {key for document in documents if isinstance(document, dict) for key in document}
        used |= set(schema.get("required", []))
        found["properties"] = {
            key: trimmed(value, [d[key] for d in documents if isinstance(d, dict) and key in d])
            for key, value in schema["properties"].items()
            if key in used
        }
    if isinstance(schema.get("items"), dict):
        found["items"] = trimmed(schema["items"], [item for d in documents if isinstance(d, list) for item in d])
    return found


def model() -> dict[str, Manifest]:
    """Kind -> schema, from the repository."""
    return json.loads(MODEL.read_text())


def schema_errors(manifest: Manifest, schema: Manifest) -> list[str]:
    from jsonschema import Draft202012Validator

    errors = Draft202012Validator(schema).iter_errors(manifest)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]


# -- safety ---------------------------------------------------------------------------------------------------------------


def faults(manifest: Manifest) -> list[str]:
    """One line for each thing that would open the cluster, or let a container take more than its share."""
    kind, found = manifest["kind"], []
    if kind == "Secret":
        return ["a Secret is in the manifests: tokens are made by hand"]
    if kind in ("Ingress", "Service"):
        return [f"a {kind} is in the manifests: Ray's ports are reached by port-forward"]
    spec = cluster_spec(manifest)
    if kind == "NetworkPolicy":
        return list(_policy_faults(manifest["spec"]))
    if not spec:
        return []
    auth = spec.get("authOptions", {})
    if auth.get("mode") != "token" or not auth.get("secretName"):
        found.append("authOptions: no token")
    if kind == "RayJob" and manifest["spec"].get("submissionMode") != "SidecarMode":
        found.append("submissionMode: the dashboard's port would be used between pods")
    head = spec["headGroupSpec"]
    if head.get("serviceType") != "ClusterIP" or head.get("enableIngress"):
        found.append("headGroupSpec: reachable from outside")
    if spec.get("enableInTreeAutoscaling"):
        found += _container_faults("autoscaler", spec.get("autoscalerOptions", {}))
    for name, group in groups(spec):
        pod = group["template"]["spec"]
        may_ask = name == "head" and bool(spec.get("enableInTreeAutoscaling"))
        found += [f"{name}: {fault}" for fault in _pod_faults(pod, group["template"].get("metadata", {}), may_ask)]
    return found


def _pod_faults(pod: Manifest, metadata: Manifest, may_ask_kubernetes: bool) -> Iterator[str]:
    if metadata.get("labels", {}).get("app.kubernetes.io/name") != "wmrl-ray":
        yield "its label is not the one that the NetworkPolicy selects"
    if pod.get("automountServiceAccountToken") is not may_ask_kubernetes:
        yield "automountServiceAccountToken"
    for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if pod.get(key):
            yield key
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not isinstance(context.get("runAsUser"), int) or not context["runAsUser"]:
        yield "runs as root, or as nobody knows whom"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "seccompProfile"
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    for name, volume in volumes.items():
        if "hostPath" in volume:
            yield f"volume {name}: hostPath"
        if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
            yield f"volume {name}: no sizeLimit"
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        yield from _container_faults(container["name"], container)
        mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
        if volumes.get(mounts.get("/dev/shm", ""), {}).get("emptyDir", {}).get("medium") != "Memory":
            yield f"{container['name']}: /dev/shm is not an emptyDir in memory"


def _container_faults(name: str, container: Manifest) -> Iterator[str]:
    limits = container.get("resources", {}).get("limits", {})
    for resource in ("cpu", "memory"):
        if resource not in limits:
            yield f"{name}: no limit of {resource}"
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield f"{name}: privileges"
    if context.get("capabilities", {}).get("drop") != ["ALL"] or context.get("capabilities", {}).get("add"):
        yield f"{name}: capabilities"
    if context.get("runAsNonRoot") is False or context.get("runAsUser") == 0:
        yield f"{name}: root"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield f"{name}: hostPort"
    for variable in container.get("env", []):
        if "TOKEN" in variable["name"] and "value" in variable:
            yield f"{name}: a token in {variable['name']}"


def _policy_faults(spec: Manifest) -> Iterator[str]:
    if set(spec.get("policyTypes", [])) != {"Ingress", "Egress"}:
        yield "policyTypes: not both directions"
    if spec.get("podSelector", {}).get("matchLabels") != {"app.kubernetes.io/name": "wmrl-ray"}:
        yield "podSelector: not our pods"
    for rule in spec.get("ingress", []):
        sources = rule.get("from", [])
        if not sources or any("podSelector" not in source or not source["podSelector"] for source in sources):
            yield "ingress: from pods that nobody named"
        inside = all(
            source.get("podSelector") == spec["podSelector"] and "namespaceSelector" not in source for source in sources
        )
        if not inside and not rule.get("ports"):
            yield "ingress: all ports to pods of others"
    for rule in spec.get("egress", []):
        for target in rule.get("to", [{}]):
            if "ipBlock" in target and "169.254.0.0/16" not in target["ipBlock"].get("except", []):
                yield "egress: to the cloud's metadata service"
            if not target or ("ipBlock" in target and not rule.get("ports")):
                yield "egress: everywhere"
