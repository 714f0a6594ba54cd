"""The pod without a cluster: the files of its image, its environment, user, probes and grace, exactly as rendered."""

import os
import shutil
import signal
import subprocess
import threading

import pytest

import manifests
from conftest import eventually
from test_service import SERVICE, Producer, rows

NOBODY = 65532


class Pod:
    """The container of a rendering, run from the files of its image alone."""

    def __init__(self, objects, root, endpoint):
        self.rendered = manifests.Rendered(objects)
        subprocess.run([manifests.FOLDER / "rootfs.sh", SERVICE, root], check=True)
        # Only volumes can be written to; the folder of a test is closed to other users.
        root.chmod(0o755)
        (root / "tmp").chmod(0o555)
        for mount in self.rendered.container["volumeMounts"]:
            folder = root / mount["mountPath"][1:]
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o777)
        chroot = shutil.which("chroot", path="/usr/sbin:/usr/bin")
        # As another user where we may become one; in any case it is not ours to write.
        self.enter = ([chroot, f"--userspec={NOBODY}:{NOBODY}", root] if os.getuid() == 0
                      else [shutil.which("unshare"), "--map-root-user", chroot, root])
        given, _ = self.rendered.variables()
        # What a pod gets from outside: credentials and, here, a way to the emulator.
        self.env = {**given, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": endpoint}
        self.process = subprocess.Popen([*self.enter, "/app/service"], env=self.env, stderr=subprocess.PIPE, text=True)
        self.log = []
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()

    def probe(self, name):
        command = self.rendered.container[name]["exec"]["command"]
        return subprocess.run([*self.enter, *command], env=self.env, capture_output=True, timeout=30).returncode

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=self.rendered.pod["terminationGracePeriodSeconds"])


@pytest.mark.parametrize("name", ["base", "production", "statefulset", "irsa"])
def test_a_pod_starts_is_found_alive_and_stops_within_its_grace(rendered, aws, tmp_path, name):
    aws.deploy("lease-table.yaml", Application="cart-worker", Stream="cart-queue")
    aws.deploy("stream.yaml", StreamName="cart-queue", ShardCount=2)
    Producer(aws.client("kinesis"), "cart-queue").put(1)
    pod = Pod(rendered(name), tmp_path, aws.url)
    try:
        eventually(lambda: pod.probe("startupProbe") == 0 or pod.process.poll() is not None)
        assert pod.process.poll() is None, "it ended"
        eventually(lambda: pod.probe("livenessProbe") == 0 and pod.probe("readinessProbe") == 0, 30)
        owners = {row.get("leaseOwner") for row in eventually(lambda: rows(aws, "cart-worker"))}
        assert len(owners) == 1
        assert (owners == {"from-the-pod"}) == (name == "statefulset"), "named after the pod"
        assert pod.terminate() == 0
        assert pod.probe("livenessProbe") == 2, "a stopped worker leaves no file behind"
        left = {row.get("leaseOwner") for row in rows(aws, "cart-worker")}
        assert left == ({"from-the-pod"} if name == "statefulset" else {None}), "kept, or free for others"
    except AssertionError:
        print(*pod.log)
        raise
    finally:
        pod.process.kill()
        pod.process.wait()
