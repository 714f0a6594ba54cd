"""Kubernetes manifests: rendered, held against schemas, and checked for what must agree with what."""

import json
import math
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

from templates import BIN, ROOT

FOLDER = ROOT / "k8s"
COMPONENTS = sorted(folder.name for folder in (FOLDER / "components").iterdir())
OVERLAYS = sorted(folder.name for folder in (FOLDER / "overlays").iterdir())
SERVICE = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / "service"
# The oldest and the newest that clusters run, and one between.
VERSIONS = ["1.30", "1.33", "1.37"]
OWN_SCHEMAS = json.loads(Path(__file__).with_name("keda.schema.json").read_text())
MIB = 1 << 20
# What the worker waits for AWS at start.
START_PATIENCE = 60


def render(folder):
    """The objects that `kubectl apply -k` would send."""
    built = subprocess.run([BIN / "kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


def schema_findings(objects, version):
    """What the API server's own schema would refuse; an unknown kind is refused, too."""
    for thing in objects:
        name = f"{thing.get('kind')} {thing.get('metadata', {}).get('name')}"
        try:
            if thing["kind"] in OWN_SCHEMAS:
                jsonschema.validate(thing, OWN_SCHEMAS[thing["kind"]])
            else:
                kubernetes_validate.validate(thing, version, strict=True)
        except (kubernetes_validate.ValidationError, jsonschema.ValidationError) as error:
            where = ".".join(map(str, error.path))
            yield f"schema: {name}: {where}: {str(error.message)[:200]}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"unknown kind: {name}"


def seconds(text):
    """A duration as settings write it, in seconds."""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)\s*(ms|s|m|h)", text))


def quantity(text):
    """A Kubernetes quantity of bytes."""
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi)?", text).groups()
    return int(number) * {None: 1, "Ki": 1 << 10, "Mi": MIB, "Gi": 1 << 30}[unit]


def settings(variables):
    """The settings that the service itself makes of its variables, and what it says of them: refused, or by names of
    the Java KCL."""
    done = subprocess.run([SERVICE, "config"], env=variables, capture_output=True, text=True, timeout=30)
    return json.loads(done.stdout) if done.returncode == 0 else None, done.stderr.splitlines()


class Rendered:
    """What was rendered, by kind."""

    def __init__(self, objects):
        self.objects = objects
        (self.workload,) = [o for o in objects if o["kind"] in ("Deployment", "StatefulSet")]
        self.spec = self.workload["spec"]
        self.pod = self.spec["template"]["spec"]
        (self.container,) = self.pod["containers"]

    def of_kind(self, *kinds):
        return [thing for thing in self.objects if thing["kind"] in kinds]

    def variables(self):
        """The environment of the container, and the names that lead nowhere."""
        maps = {m["metadata"]["name"]: m["data"] for m in self.of_kind("ConfigMap")}
        found, missing = {}, []
        for source in self.container.get("envFrom", []):
            name = source["configMapRef"]["name"]
            found.update(maps.get(name, {}))
            if name not in maps:
                missing.append(name)
        for variable in self.container.get("env", []):
            found[variable["name"]] = variable.get("value", "from-the-pod")
        return found, missing


def findings(objects):
    """What no schema knows: values that must agree with each other, with the image and with the settings."""
    r = Rendered(objects)
    variables, missing = r.variables()
    yield from (f"config map: there is no {name}" for name in missing)
    config, refused = settings(variables)
    yield from (f"settings: {problem}" for problem in refused)
    yield from selectors(r)
    yield from security(r)
    yield from image(r)
    yield from scaling(r, config)
    if config:
        yield from monitoring(r, config)
        yield from probes(r, config)
        yield from shutdown(r, config)
        yield from memory(r, config)


def selectors(r):
    """Everything that selects pods selects those of the workload."""
    labels = r.spec["template"]["metadata"]["labels"].items()
    chosen = [(r.workload["kind"], r.spec["selector"]["matchLabels"])]
    chosen += [("PodDisruptionBudget", o["spec"]["selector"]["matchLabels"]) for o in r.of_kind("PodDisruptionBudget")]
    chosen += [("NetworkPolicy", o["spec"]["podSelector"]["matchLabels"]) for o in r.of_kind("NetworkPolicy")]
    chosen += [("PodMonitor", o["spec"]["selector"]["matchLabels"]) for o in r.of_kind("PodMonitor")]
    chosen += [("Service", o["spec"]["selector"]) for o in r.of_kind("Service")]
    spread = r.pod.get("topologySpreadConstraints", [])
    chosen += [("topologySpreadConstraints", s["labelSelector"]["matchLabels"]) for s in spread]
    for what, selector in chosen:
        if not selector or not selector.items() <= labels:
            yield f"selector: that of {what} is not on the pods: {selector}"
    home = r.workload["metadata"].get("namespace")
    for thing in r.objects:
        if thing["metadata"].get("namespace") != home:
            yield f"namespace: {thing['kind']} is not in that of the pods"
    revision = {"Deployment": "pod-template-hash", "StatefulSet": "controller-revision-hash"}[r.workload["kind"]]
    for constraint in spread:
        if constraint.get("matchLabelKeys") != [revision]:
            yield f"spread: the pods of a {r.workload['kind']} are told apart by {revision}"
    accounts = [o["metadata"]["name"] for o in r.of_kind("ServiceAccount")]
    if r.pod.get("serviceAccountName") not in accounts:
        yield f"service account: there is no {r.pod.get('serviceAccountName')}"
    for budget in r.of_kind("PodDisruptionBudget"):
        if "maxUnavailable" not in budget["spec"]:
            yield "disruption budget: minAvailable can block every drain; use maxUnavailable"
    if not r.of_kind("PodDisruptionBudget") or not r.of_kind("NetworkPolicy"):
        yield "missing: a disruption budget, or a network policy"


def security(r):
    """The pod passes the `restricted` profile, and no more reaches it than must."""
    own, pod = r.container.get("securityContext", {}), r.pod.get("securityContext", {})
    wanted = [
        (pod.get("runAsNonRoot") is True and pod.get("runAsUser", 0) > 0, "runs as root"),
        (pod.get("seccompProfile", {}).get("type") == "RuntimeDefault", "has no seccomp profile"),
        (own.get("allowPrivilegeEscalation") is False, "may escalate privileges"),
        (own.get("capabilities", {}).get("drop") == ["ALL"], "keeps capabilities"),
        (own.get("readOnlyRootFilesystem") is True, "can write to its root"),
        (r.pod.get("automountServiceAccountToken") is False, "has a Kubernetes token"),
        (r.pod.get("enableServiceLinks") is False, "gets variables of services, which the settings may refuse"),
    ]
    yield from (f"security: the pod {what}" for holds, what in wanted if not holds)
    for policy in r.of_kind("NetworkPolicy"):
        out = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
        into = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        ports = {port["containerPort"] for port in r.container.get("ports", [])}
        if into != ports:
            yield f"network: lets in {sorted(into)}, and the pod serves {sorted(ports)}"
        if not {53, 80, 443} <= out or "Egress" not in policy["spec"]["policyTypes"]:
            yield "network: names, the Pod Identity agent and AWS must be in reach"
        blocks = [peer["ipBlock"] for rule in policy["spec"]["egress"] for peer in rule["to"] if "ipBlock" in peer]
        to = {block["cidr"] for block in blocks}
        but = {cidr for block in blocks for cidr in block.get("except", [])}
        for agent, aws, node in [("169.254.170.23/32", "0.0.0.0/0", "169.254.169.254/32"),
                                 ("fd00:ec2::23/128", "::/0", "fd00:ec2::254/128")]:
            if not {agent, aws} <= to:
                yield f"network: {agent} and {aws} must be in reach"
            if node not in but:
                yield f"network: the node's own credentials at {node} must not be in reach"


def image(r):
    """Probes run what the image has."""
    tag = r.container["image"].rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest"):
        yield f"image: {r.container['image']} is whatever was pushed last; name a version"
    dockerfile = (FOLDER / "Dockerfile").read_text()
    (entrypoint,) = set(re.findall(r'^ENTRYPOINT \["([^"]+)"', dockerfile, re.M))
    runs = [entrypoint, "sh"] if tag.endswith("-debian") else [entrypoint]
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        command = r.container.get(name, {}).get("exec", {}).get("command", [entrypoint])
        if command[0] not in runs:
            yield f"probe: {name} runs {command[0]}, and the image has {' and '.join(runs)}"
    if "preStop" in r.container.get("lifecycle", {}):
        yield "probe: preStop only uses up the grace period; SIGTERM does it all"


def monitoring(r, config):
    """What scrapes the pod asks where it serves."""
    address = config.get("metrics_address")
    served = {int(address.rpartition(":")[2])} if address else set()
    ports = {port["name"]: port["containerPort"] for port in r.container.get("ports", [])}
    if set(ports.values()) != served:
        yield f"metrics: the service listens on {sorted(served)}, the pod names {sorted(ports.values())}"
    for monitor in r.of_kind("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if endpoint["port"] not in ports:
                yield f"metrics: PodMonitor asks port {endpoint['port']}, which the pod does not name"


def probes(r, config):
    """The probe looks at the file that the worker writes, and not more strictly than the worker can hold."""
    file = config["health_file"]
    idle = 5 * seconds(config["idle_time_between_reads"])
    allowed = seconds(config["health_max_age"]) if config["health_max_age"] else max(30, idle)
    if allowed < idle:
        yield f"probe: health_max_age {allowed} s is less than five times idle_time_between_reads"
    mounts = {mount["name"]: mount["mountPath"] for mount in r.container.get("volumeMounts", [])}
    volumes = {volume["name"]: volume for volume in r.pod.get("volumes", [])}
    writable = [path for name, path in mounts.items() if "emptyDir" in volumes.get(name, {})]
    if not file or os.path.dirname(file) not in writable:
        yield f"health file: {file} is in no writable volume"
    if "livenessProbe" not in r.container:
        yield "probe: there is no liveness probe"
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = r.container.get(name)
        if not probe:
            continue
        command = probe["exec"]["command"]
        if command[0] == "sh":
            folder, base, minutes = re.search(r"find (\S+) .*-name (\S+) .*-mmin -([\d.]+)", command[2]).groups()
            probed, age = f"{folder}/{base}", float(minutes) * 60
        else:
            options = dict(zip(command[2:], command[3:]))
            probed = options.get("--file")
            age = seconds(options["--max-age"]) if "--max-age" in options else allowed
        if probed != file:
            yield f"health file: {name} looks at {probed}, the worker touches {file}"
        # A fraction below, as the reference system writes 5 s in minutes.
        if abs(age - allowed) > 0.01 * allowed:
            yield f"probe: {name} allows {age:.0f} s, the worker's health_max_age is {allowed:.0f} s"
        if probe.get("timeoutSeconds", 1) < 2:
            yield f"probe: {name} times out after a second, which a busy node exceeds"
    if "terminationGracePeriodSeconds" in r.container.get("readinessProbe", {}):
        yield "probe: a readiness probe has no terminationGracePeriodSeconds; the API server refuses it"
    start = r.container.get("startupProbe")
    window = (start["periodSeconds"] * start["failureThreshold"] if start
              else r.container.get("livenessProbe", {}).get("initialDelaySeconds", 0))
    if window < START_PATIENCE + seconds(config["failover_time"]):
        yield f"probe: a start may wait {START_PATIENCE} s for AWS and failover_time for leases, not {window} s"


def shutdown(r, config):
    """There is time to stop, and others get the leases at once."""
    grace = r.pod.get("terminationGracePeriodSeconds", 30)
    if grace < seconds(config["shutdown_timeout"]) + 10:
        yield f"grace: {grace} s is less than shutdown_timeout {config['shutdown_timeout']} and 10 s"
    wanted = {"Deployment": "release", "StatefulSet": "keep"}[r.workload["kind"]]
    if config["on_shutdown"] != wanted:
        yield f"leases: a {r.workload['kind']} goes with on_shutdown {wanted}, not {config['on_shutdown']}"
    if (config["worker_id"] == "from-the-pod") != (wanted == "keep"):
        yield "worker id: fixed for the lasting names of a StatefulSet, and only there"
    away = seconds(config["failover_time"]) + seconds(config["rejoin_grace"])
    if wanted == "keep" and away < grace + 30:
        yield f"leases: they wait {away:.0f} s for a worker that may take {grace} s to stop and 30 s to start"
    if wanted == "release" and seconds(config["rejoin_grace"]):
        yield "leases: those of a crashed worker wait for a name that never comes back; no rejoin_grace"
    if config["lease_table"] != "must_exist":
        yield "lease table: a wrong name would make a new, empty table; set must_exist"


def memory(r, config):
    """Memory suffices for all shards that a worker may get; CPU is not throttled."""
    resources = r.container.get("resources", {})
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    if "cpu" in limits:
        yield "cpu: a limit throttles renewals, and leases are lost"
    if "cpu" not in requests:
        yield "cpu: nothing is requested"
    if not limits.get("memory") or limits["memory"] != requests.get("memory"):
        yield "memory: request and limit differ; what is used at a peak must be there"
        return
    shards, workers = int(r.workload["metadata"]["annotations"]["kinesis-consumer/shards"]), workers_at_least(r)
    each = math.ceil(shards / max(1, workers - 1))
    needed = 64 * MIB + config["memory_budget"] + each * 10 * MIB
    if quantity(limits["memory"]) < needed:
        yield f"memory: {limits['memory']} is less than the {needed // MIB}Mi of {each} shards"


def workers_at_least(r):
    scalers = r.of_kind("ScaledObject", "HorizontalPodAutoscaler")
    if not scalers:
        return r.spec.get("replicas", 1)
    return scalers[0]["spec"].get("minReplicaCount", scalers[0]["spec"].get("minReplicas", 1))


def scaling(r, config):
    """Scalers scale this workload, never beyond its shards, on this application's lag."""
    shards = int(r.workload["metadata"]["annotations"]["kinesis-consumer/shards"])
    if r.spec.get("replicas", 0) > shards:
        yield f"scale: {r.spec['replicas']} workers for {shards} shards"
    for scaler in r.of_kind("ScaledObject", "HorizontalPodAutoscaler"):
        spec, kind = scaler["spec"], scaler["kind"]
        target = spec["scaleTargetRef"]
        if (target.get("kind", "Deployment"), target["name"]) != (r.workload["kind"], r.workload["metadata"]["name"]):
            yield f"scale: {kind} scales {target}, which is not here"
        if "replicas" in r.spec:
            yield f"scale: every apply would undo what {kind} did; leave out replicas"
        most = spec.get("maxReplicaCount", spec.get("maxReplicas"))
        if most > shards:
            yield f"scale: {kind} goes to {most} workers for {shards} shards"
        if workers_at_least(r) < 1:
            yield f"scale: {kind} goes to none, and nobody would read"
        for metric in spec.get("metrics", []):
            labels = metric["external"]["metric"].get("selector", {}).get("matchLabels", {})
            for label in ["application", "stream"]:
                if config and labels.get(label) != config[label]:
                    yield f"scale: {kind} looks at {label} {labels.get(label)}, not at {config[label]}"
        for trigger in spec.get("triggers", []):
            own = {"streamName": "stream", "namespace": "application"}
            for field, setting in own.items():
                if config and field in trigger["metadata"] and trigger["metadata"][field] != config[setting]:
                    yield f"scale: {trigger['type']} looks at {trigger['metadata'][field]}, not at {config[setting]}"
