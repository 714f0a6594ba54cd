"""The manifests in k8s/: each rendering held against the API's schemas and against our own rules."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import manifests

# Components that one has beside others; a component that patches must find what it patches in either order.
TOGETHER = ["production+podmonitor", "base+podmonitor+statefulset", "base+statefulset+podmonitor"]
RENDERINGS = ["base", *manifests.OVERLAYS, *manifests.COMPONENTS, *TOGETHER]


@pytest.mark.parametrize("version", manifests.VERSIONS)
@pytest.mark.parametrize("name", RENDERINGS)
def test_a_rendering_satisfies_the_schemas(rendered, name, version):
    assert list(manifests.schema_findings(rendered(name), version)) == []


@pytest.mark.parametrize("name", RENDERINGS)
def test_a_rendering_satisfies_the_rules(rendered, name):
    assert list(manifests.findings(rendered(name))) == []


def keda_findings(objects):
    script, packages = Path(__file__).with_name("keda.mjs"), Path(sys.prefix) / "node"
    done = subprocess.run([shutil.which("node"), script, packages], input=json.dumps(objects), capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_keda_takes_its_objects(rendered):
    for name in ("keda", "production"):
        objects = rendered(name)
        assert keda_findings(objects) == []
        (scaler,) = [o for o in objects if o["kind"] == "ScaledObject"]
        scaler["spec"]["triggers"][0]["metadata"]["shardCount"] = 4
        assert "shardCount must be string" in keda_findings(objects)[0]


def test_the_probe_of_the_reference_system_works_with_gnu_find(rendered, tmp_path):
    probe = container(rendered("zozo-compat"))["livenessProbe"]["exec"]["command"]
    probe = [*probe[:2], probe[2].replace("/tmp", str(tmp_path))]
    file = tmp_path / "health"
    assert subprocess.run(probe).returncode == 1, "missing"
    file.touch()
    assert subprocess.run(probe).returncode == 0, "fresh"
    os.utime(file, (time.time() - 6, time.time() - 6))
    assert subprocess.run(probe).returncode == 1, "older than five seconds"


def test_a_changed_setting_rolls_the_pods(rendered):
    def name_of_map(objects):
        return manifests.Rendered(objects).container["envFrom"][0]["configMapRef"]["name"]

    assert name_of_map(rendered("base")) != name_of_map(rendered("minimal"))


def container(objects):
    return manifests.Rendered(objects).container


def setting(name, value):
    """An edit that sets a variable of the config map."""
    def edit(objects):
        (config,) = [o for o in objects if o["kind"] == "ConfigMap"]
        config["data"][name] = value
    return edit


def edit(code):
    """An edit written as a statement on the rendered objects `o`, their workload's `spec`, `pod` and container `c`."""
    def run(objects):
        r = manifests.Rendered(objects)
        kind = {thing["kind"]: thing for thing in objects}
        exec(code, {"o": objects, "spec": r.spec, "pod": r.pod, "c": r.container, "kind": kind})
    return run


# An error that somebody may make, where, and the finding that names it.
SEEDS = {
    "a misspelt field": ("base", edit("pod['terminationGracePeriod'] = 30"), "schema: Deployment"),
    "a word for a number": ("base", edit("spec['replicas'] = 'two'"), "schema: Deployment"),
    "a kind that is none": ("base", edit("o.append({'apiVersion': 'v1', 'kind': 'Deploymant'})"), "unknown kind"),
    "a number where KEDA wants text": (
        "keda", edit("kind['ScaledObject']['spec']['triggers'][0]['metadata']['shardCount'] = 4"), "schema: ScaledObject"),
    "a misspelt field of KEDA": (
        "keda", edit("kind['ScaledObject']['spec']['minReplicaCounts'] = 2"), "schema: ScaledObject"),
    "a selector of other pods": (
        "base", edit("kind['PodDisruptionBudget']['spec']['selector']['matchLabels'] = {'app': 'other'}"),
        "selector: that of PodDisruptionBudget"),
    "the revision label of another kind of workload": (
        "statefulset", edit("pod['topologySpreadConstraints'][0]['matchLabelKeys'] = ['pod-template-hash']"),
        "spread: the pods of a StatefulSet"),
    "a probe of a file that nobody touches": (
        "base", edit("c['env'][0]['value'] = '/run/consumer/healthy'"), "health file: livenessProbe looks at"),
    "a health file on a read-only disk": (
        "base", edit("c['volumeMounts'][0]['mountPath'] = '/elsewhere'"), "health file: /run/consumer/health is in no"),
    "a probe by a shell that the image lacks": (
        "base", edit("c['livenessProbe']['exec']['command'] = ['sh', '-c', 'find /run/consumer -name health -mmin -1']"),
        "probe: livenessProbe runs sh"),
    "a probe stricter than the pause between reads": (
        "base", setting("CONSUMER_IDLE_TIME_BETWEEN_READS", "10s"), "probe: health_max_age 30.0 s"),
    "a probe stricter than the worker": (
        "zozo-compat", setting("CONSUMER_HEALTH_MAX_AGE", "60s"), "probe: livenessProbe allows 5 s"),
    "a grace that belongs to liveness": (
        "base", edit("c['readinessProbe']['terminationGracePeriodSeconds'] = 15"), "probe: a readiness probe has no"),
    "a start that is cut short": (
        "base", edit("c['startupProbe']['failureThreshold'] = 3"), "probe: a start may wait"),
    "a grace shorter than the shutdown": ("base", setting("CONSUMER_SHUTDOWN_TIMEOUT", "60s"), "grace: 30 s"),
    "an image without a version": ("base", edit("c['image'] = 'service:latest'"), "image: service:latest"),
    "more workers than shards": (
        "keda", edit("kind['ScaledObject']['spec']['maxReplicaCount'] = 9"), "scale: ScaledObject goes to 9"),
    "a scaler of something else": (
        "hpa", edit("kind['HorizontalPodAutoscaler']['spec']['scaleTargetRef']['kind'] = 'StatefulSet'"),
        "scale: HorizontalPodAutoscaler scales"),
    "replicas that fight the scaler": ("hpa", edit("spec['replicas'] = 2"), "scale: every apply would undo"),
    "a scaler of another stream": ("keda", setting("CONSUMER_STREAM", "other"), "scale: aws-kinesis-stream looks at"),
    "a scaler of every application": (
        "hpa", edit("del kind['HorizontalPodAutoscaler']['spec']['metrics'][0]['external']['metric']['selector']"),
        "scale: HorizontalPodAutoscaler looks at application None"),
    "a scaler of another application": (
        "hpa", setting("CONSUMER_APPLICATION", "other"), "scale: HorizontalPodAutoscaler looks at application cart-worker"),
    "leases kept by a deployment": ("base", setting("CONSUMER_ON_SHUTDOWN", "keep"), "leases: a Deployment goes with"),
    "leases that wait for a name that never comes back": (
        "base", setting("CONSUMER_REJOIN_GRACE", "50s"), "leases: those of a crashed worker wait"),
    "leases that do not wait for their worker": (
        "statefulset", setting("CONSUMER_REJOIN_GRACE", "0s"), "leases: they wait 10 s"),
    "two workers of one name": ("base", setting("CONSUMER_WORKER_ID", "from-the-pod"), "worker id: fixed"),
    "a misspelt setting": ("base", setting("CONSUMER_FAILOVER", "10s"), "settings: CONSUMER_FAILOVER"),
    "a setting of the Java KCL": (
        "base", setting("CONSUMER_FAILOVER_TIME_MILLIS", "10000"), "settings: CONSUMER_FAILOVER_TIME_MILLIS: the Java KCL"),
    "a table made by mistake": ("base", setting("CONSUMER_LEASE_TABLE", "create_if_missing"), "lease table: a wrong name"),
    "a throttled worker": ("base", edit("c['resources']['limits']['cpu'] = '1'"), "cpu: a limit throttles"),
    "too little memory for the budget": ("base", setting("CONSUMER_MEMORY_BUDGET", "268435456"), "memory: 320Mi is less"),
    "a port that nobody serves": (
        "podmonitor", setting("CONSUMER_METRICS_ADDRESS", "0.0.0.0:9000"), "metrics: the service listens on [9000]"),
    "a monitor of another port": (
        "podmonitor", edit("kind['PodMonitor']['spec']['podMetricsEndpoints'][0]['port'] = 'http'"),
        "metrics: PodMonitor asks port http"),
    "a monitor of another namespace": (
        "production+podmonitor", edit("kind['PodMonitor']['metadata']['namespace'] = 'monitoring'"), "namespace: PodMonitor"),
    "a settings map that is not there": (
        "base", edit("c['envFrom'][0]['configMapRef']['name'] = 'settings'"), "config map: there is no settings"),
    "variables of services": ("base", edit("del pod['enableServiceLinks']"), "security: the pod gets variables"),
    "a network policy that forgets IPv6": (
        "base", edit("del kind['NetworkPolicy']['spec']['egress'][2]['to'][1]"), "network: fd00:ec2::23/128 and ::/0"),
    "a pod that reaches the node's credentials": (
        "base", edit("del kind['NetworkPolicy']['spec']['egress'][2]['to'][0]['ipBlock']['except']"),
        "network: the node's own credentials at 169.254.169.254/32"),
    "a pod that runs as root": ("base", edit("pod['securityContext']['runAsUser'] = 0"), "security: the pod runs as root"),
}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seeded_error_is_found_by_name(rendered, seed):
    name, change, finding = SEEDS[seed]
    objects = rendered(name)
    change(objects)
    if not finding.startswith(("schema", "unknown kind")):
        assert any(found.startswith(finding) for found in manifests.findings(objects)), list(manifests.findings(objects))
        return
    for version in manifests.VERSIONS:
        found = list(manifests.schema_findings(objects, version))
        assert any(one.startswith(finding) for one in found), found
