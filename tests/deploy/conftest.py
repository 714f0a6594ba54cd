"""Servers, clients and stacks for the tests of what is deployed. `.ci/deploy.sh` installs and runs them."""

import copy
import socket
import subprocess
import time
import urllib.request

import boto3
import pytest
import requests
import yaml

import manifests
import templates
from templates import BIN

REGION = "us-east-1"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def eventually(what, seconds=60):
    """The first true answer of `what`, which is asked until then; fails after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        answer = what()
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {seconds} s: {what.__doc__ or what}"
        time.sleep(0.1)


def answers(url):
    """Whether there is a server."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
        return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


class Aws:
    """An AWS of its own on loopback, by moto."""

    def __init__(self, url):
        self.url = url

    def client(self, service):
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def deploy(self, name, **parameters):
        """Makes a stack of a template, or changes the one that there is; returns its outputs."""
        cloudformation = self.client("cloudformation")
        stack = f"{name.removesuffix('.yaml')}-stack"
        call = dict(
            StackName=stack,
            TemplateBody=(templates.FOLDER / name).read_text(),
            Capabilities=["CAPABILITY_IAM"],
            Parameters=[{"ParameterKey": k, "ParameterValue": str(v)} for k, v in parameters.items()],
        )
        known = [s["StackName"] for s in cloudformation.describe_stacks()["Stacks"]]
        (cloudformation.update_stack if stack in known else cloudformation.create_stack)(**call)
        described = cloudformation.describe_stacks(StackName=stack)["Stacks"][0]
        assert described["StackStatus"] in ("CREATE_COMPLETE", "UPDATE_COMPLETE"), described
        return {output["OutputKey"]: output["OutputValue"] for output in described.get("Outputs", [])}

    def delete(self, name):
        self.client("cloudformation").delete_stack(StackName=f"{name.removesuffix('.yaml')}-stack")


@pytest.fixture(scope="session")
def moto(tmp_path_factory):
    """The endpoint of one moto for all tests."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with open(tmp_path_factory.mktemp("moto") / "moto.log", "w") as log:
        server = subprocess.Popen([BIN / "moto_server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        eventually(lambda: answers(url))
        yield url
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def aws(moto):
    """An empty AWS that lets everybody do everything."""
    requests.post(f"{moto}/moto-api/reset-auth", data="1e9", timeout=30).raise_for_status()
    requests.post(f"{moto}/moto-api/reset", timeout=30).raise_for_status()
    return Aws(moto)


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    """Renders an overlay, or the base with one component, or either `+` more components; once."""
    known = {}

    def one(name):
        if name == "base":
            folder = manifests.FOLDER / "base"
        elif name in manifests.OVERLAYS:
            folder = manifests.FOLDER / "overlays" / name
        else:
            folder = tmp_path_factory.mktemp(name)
            up = "../" * (len(folder.parts) - 1) + str(manifests.FOLDER)[1:]
            first, *more = name.split("+") if "+" in name else ["base", name]
            # As one does it: in the overlay's own list, so that its namespace holds for all of them.
            edited = {"resources": ["../../base"]}
            if first != "base":
                edited = yaml.safe_load((manifests.FOLDER / "overlays" / first / "kustomization.yaml").read_text())
            paths = {key: [path.replace("../..", up) for path in edited.get(key, [])] for key in ("resources", "components")}
            paths["components"] += [f"{up}/components/{component}" for component in more]
            (folder / "kustomization.yaml").write_text(yaml.safe_dump({**edited, **paths}))
        if name not in known:
            known[name] = manifests.render(folder)
        return copy.deepcopy(known[name])

    return one
