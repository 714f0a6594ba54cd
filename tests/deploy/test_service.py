"""The service example: its settings, its probe, its image, and a stream's journey on a table made by the template."""

import contextlib
import gzip
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import boto3
import pytest
import requests

import templates
from conftest import REGION, answers, eventually, free_port
from templates import BIN

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", templates.ROOT / "target"))
SERVICE = TARGET / "debug" / "service"
LEASECTL = TARGET / "debug" / "leasectl"
SERVERS = Path(os.environ.get("KINESIS_CONSUMER_SERVERS", templates.ROOT / "target" / "servers"))
REQUIRED = {"CONSUMER_APPLICATION": "cart-worker", "CONSUMER_STREAM": "cart-queue"}


def config(*arguments, **variables):
    """What `config` says: exit code, settings, and problems."""
    done = subprocess.run([SERVICE, "config", *arguments], env=variables, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout and json.loads(done.stdout), done.stderr.splitlines()


def test_a_variable_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    file = tmp_path / "consumer.toml"
    file.write_text('application = "filed"\nstream = "s"\nfailover_time = "4s"\nmax_records = 500\n')
    code, settings, _ = config(CONSUMER_CONFIG_FILE=str(file), CONSUMER_MAX_RECORDS="100", CONSUMER_APPLICATION="cart")
    assert code == 0
    assert (settings["application"], settings["stream"]) == ("cart", "s")
    assert (settings["failover_time"], settings["max_records"], settings["checkpoint_interval"]) == ("4s", 100, "5s")


def test_the_file_that_comes_as_an_example_is_valid():
    example = templates.ROOT / "examples" / "service" / "consumer.toml"
    code, settings, problems = config(CONSUMER_CONFIG_FILE=str(example))
    assert code == 0, problems
    assert (settings["application"], settings["lease_table"], settings["log_format"]) == ("cart-worker", "must_exist", "json")


def test_a_variable_has_the_type_of_its_setting():
    code, settings, _ = config(**REQUIRED, CONSUMER_WORKER_ID="123", CONSUMER_SCAN_BUDGET="2.5",
                               CONSUMER_PRINT_RECORDS="true", CONSUMER_LEASE_TABLE="must_exist",
                               CONSUMER_INITIAL_POSITION='{"at_timestamp": "2026-11-22T08:30:00Z"}')
    assert code == 0
    assert (settings["worker_id"], settings["scan_budget"], settings["print_records"]) == ("123", 2.5, True)
    assert settings["initial_position"] == {"at_timestamp": "2026-11-22T08:30:00Z"}


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    file = tmp_path / "consumer.toml"
    file.write_text('failover_tiem = "4s"\nepsilonMillis = 25\n')
    code, _, problems = config(CONSUMER_CONFIG_FILE=str(file), CONSUMER_MAX_RECORDS="ten", CONSUMER_SHARDS="4")
    assert code == 2
    assert [problem.split(":")[0] for problem in problems] == [
        "epsilonMillis", "failover_tiem", "CONSUMER_MAX_RECORDS", "CONSUMER_SHARDS"]
    assert "it follows failover_time" in problems[0]


def test_what_is_required_and_what_cannot_work_is_said():
    code, _, problems = config()
    assert code == 2 and "CONSUMER_APPLICATION" in problems[0] and "CONSUMER_STREAM" in problems[1]
    code, _, problems = config(**REQUIRED, CONSUMER_FAILOVER_TIME="10ms")
    assert code == 2 and "failover_time: 10ms is too short" in problems[0]
    code, _, problems = config(CONSUMER_CONFIG_FILE="/nowhere.toml")
    assert code == 2 and "/nowhere.toml" in problems[0]


def kcl_names():
    """Each name of the KCL's that the service knows: how it is taken, and our setting if there is one."""
    source = (templates.ROOT / "examples" / "service" / "kcl_names.rs").read_text()
    names = re.findall(r'^ {4}\(\s*"(\w+)",\s*(?:([A-Z]\w+)\("(\w+)"\)\)|\w)', source, re.M)
    assert len(names) == int(re.search(r"NAMES: \[[^;]*; (\d+)\]", source)[1])
    return names


# What one writes with the KCL, and what that is here.
TAKEN = {
    "Millis": ("15000", "15s"),
    "Seconds": ("15", "15s"),
    "Lower": ("DETAILED", "detailed"),
    "Position": ("TRIM_HORIZON", "trim_horizon"),
    "Time": ("1795336200", {"at_timestamp": "2026-11-22T08:30:00Z"}),
    "Dimensions": ("Operation,ShardId", ["shard"]),
}
NUMBERS = ("max_leases_for_worker", "max_leases_to_steal_at_one_time", "max_records")


def test_every_name_of_the_kcl_is_taken_for_ours_with_a_hint_or_refused_with_the_reason(tmp_path):
    names = kcl_names()
    _, settings, _ = config(**REQUIRED)
    assert {ours for _, _, ours in names if ours} <= settings.keys()
    file = tmp_path / "kcl.toml"
    for name, how, ours in names:
        if not ours:
            continue
        theirs, expected = ("7", 7) if ours in NUMBERS else TAKEN.get(how, ("name", "name"))
        file.write_text(f'{name} = "{theirs}"\n')
        required = {key: value for key, value in REQUIRED.items() if key != f"CONSUMER_{ours.upper()}"}
        code, settings, said = config(**required, CONSUMER_CONFIG_FILE=str(file))
        assert (code, len(said)) == (0, 1), said
        assert settings[ours] == expected and f"{name}: the Java KCL's {name} is {ours} here; it was taken" in said[0]
        # Not beside ours, and only what can be converted.
        file.write_text(f'{name} = "{theirs}"\n{ours} = {json.dumps(expected) if isinstance(expected, (str, int)) else "[]"}\n')
        code, _, said = config(**required, CONSUMER_CONFIG_FILE=str(file))
        assert code == 2 and any(f"{name}: the Java KCL's {name} is {ours} here, which is given, too" in s for s in said)
        file.write_text(f"{name} = {{}}\n")
        code, _, said = config(**required, CONSUMER_CONFIG_FILE=str(file))
        assert code == 2 and any("cannot be converted" in line for line in said), said
    variable = {name: "CONSUMER_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper() for name, _, ours in names if not ours}
    code, _, problems = config(**{one: "1" for one in variable.values()})
    said = {problem.split(":")[0]: problem for problem in problems}
    assert code == 2
    for name, one in variable.items():
        assert f"nothing corresponds to the Java KCL's {name}: " in said[one]


def test_a_variable_by_a_name_of_the_kcl_wins_over_the_file_and_two_names_for_one_setting_are_refused(tmp_path):
    file = tmp_path / "kcl.toml"
    file.write_text("failoverTimeMillis = 15000\n")
    given = {**REQUIRED, "CONSUMER_CONFIG_FILE": str(file)}
    code, settings, said = config(**given, CONSUMER_FAILOVER_TIME_MILLIS="20000")
    assert (code, settings["failover_time"], len(said)) == (0, "20s", 1)
    code, _, said = config(**given, CONSUMER_FAILOVER_TIME="20s")
    assert code == 2 and "failover_time here, which is given, too" in said[0]
    code, _, said = config(**REQUIRED, CONSUMER_WORKER_IDENTIFIER="a", CONSUMER_STREAM_NAME="b", CONSUMER_SHUTDOWN_GRACE_MILLIS="1",
                           CONSUMER_GRACEFUL_LEASE_HANDOFF_TIMEOUT_MILLIS="1")
    assert code == 2 and [line.split(":")[0] for line in said] == ["CONSUMER_SHUTDOWN_GRACE_MILLIS", "CONSUMER_STREAM_NAME"]


def test_outputs_of_the_templates_are_named_as_the_settings():
    _, settings, _ = config(**REQUIRED)
    elsewhere = {"StreamArn", "LeaseTableArn", "RoleArn", "OperatorPolicyArn", "OperatorChangePolicyArn", "KeyPolicyArn",
                 "KedaPolicyArn", "DashboardUrl"}
    for file in templates.FOLDER.glob("*.yaml"):
        for name, output in templates.load(file.name)["Outputs"].items():
            setting = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
            if setting in settings:
                assert output["Description"] == f"Environment variable: CONSUMER_{setting.upper()}"
            else:
                assert name in elsewhere, f"{file.name}: {name}"


def test_the_image_is_built_from_what_is_there_and_runs_the_example(tmp_path):
    dockerfile = (templates.ROOT / "k8s" / "Dockerfile").read_text()
    ignored = (templates.ROOT / "k8s" / "Dockerfile.dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.M):
        *sources, goal = line.split()
        for source in sources:
            assert f"!{source}" in ignored, f"{source} is kept out of the build"
            here, there = templates.ROOT / source, tmp_path / (source if goal == "./" else goal)
            there.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if here.is_dir() else shutil.copy)(here, there)
    # The command of the build stage, as far as the sources go: no file is missing that the code includes. The folder
    # of artefacts is the project's, so that dependencies are there.
    (command,) = re.findall(r"^RUN .*(cargo build .*--package kinesis-consumer-service)$", dockerfile, re.M)
    check = command.replace("build --release", "check --offline").split()
    env = {**os.environ, "CARGO_TARGET_DIR": str(TARGET.absolute())}
    done = subprocess.run(check, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entrypoints = re.findall(r"^ENTRYPOINT (.+)$", dockerfile, re.M)
    assert entrypoints == ['["/app/service"]'] * 2, "exec form, the example's name"
    assert len(re.findall(r"^USER (?!0)\d+:\d+$", dockerfile, re.M)) == 2, "a number, which runAsNonRoot can check"
    assert re.findall(r"^FROM (\S+)", dockerfile, re.M)[-1] == "scratch", "the default has no shell"


def test_the_image_is_built_without_what_only_tests_need():
    features = ["cargo", "tree", "--locked", "--offline", "--package", "kinesis-consumer-service", "--edges", "normal",
                "--prefix", "none", "--format", "{p}|{f}"]
    tree = subprocess.run(features, cwd=templates.ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    (library,) = {line for line in tree if line.startswith("kinesis-consumer ")}
    assert sorted(library.split("|")[1].split(",")) == ["cloudwatch", "default", "prometheus"]
    assert not any(line.startswith(("dynoxide", "proptest")) for line in tree)


def hadolint(file):
    """What the linter finds; its rules have names such as DL3007."""
    call = [BIN / "hadolint", "--no-color", "--format", "json", file]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60)
    return [(one["code"], one["message"]) for one in json.loads(done.stdout)]


def test_the_dockerfile_has_nothing_that_a_linter_finds(tmp_path):
    dockerfile = templates.ROOT / "k8s" / "Dockerfile"
    assert hadolint(dockerfile) == []
    seeded = tmp_path / "Dockerfile"
    seeded.write_text(dockerfile.read_text().replace("debian:bookworm-slim", "debian:latest"))
    assert [code for code, _ in hadolint(seeded)] == ["DL3007"]


def test_the_files_of_the_image_suffice_to_run_the_service(tmp_path):
    root = tmp_path / "rootfs"
    subprocess.run([templates.ROOT / "k8s" / "rootfs.sh", SERVICE, root], check=True)
    in_root = [shutil.which("chroot", path="/usr/sbin:/usr/bin"), root, "/app/service"]
    if os.getuid() != 0:
        in_root = [shutil.which("unshare"), "--map-root-user", *in_root]
    done = subprocess.run([*in_root, "config"], env=REQUIRED, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["application"] == "cart-worker"
    shipped = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}
    assert "etc/ssl/certs/ca-certificates.crt" in shipped
    assert not {file for file in shipped if file.startswith(("bin/", "sbin/", "usr/bin/"))}, "no shell"


class Service:
    """A running service; its records come on standard output."""

    def __init__(self, folder, **variables):
        self.health = folder / "health"
        self.log = folder / "service.log"
        self.records = []
        base = {"AWS_REGION": REGION, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
                "CONSUMER_HEALTH_FILE": str(self.health), "CONSUMER_PRINT_RECORDS": "true",
                "CONSUMER_INITIAL_POSITION": "trim_horizon", "CONSUMER_LEASE_TABLE": "must_exist",
                "CONSUMER_FAILOVER_TIME": "4s", "CONSUMER_IDLE_TIME_BETWEEN_READS": "200ms",
                "CONSUMER_LOG_FORMAT": "json", "CONSUMER_METRICS_LEVEL": "none"}
        with open(self.log, "a") as log:
            self.process = subprocess.Popen([SERVICE], env={**base, **variables}, stdout=subprocess.PIPE, stderr=log)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.records.append(json.loads(line))

    def probe(self):
        call = [SERVICE, "healthcheck", "--file", self.health]
        return subprocess.run(call, capture_output=True, timeout=30).returncode

    def stop(self):
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=30)
        self.reader.join(timeout=30)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def kinesis_local(tmp_path):
    """The endpoint of a Kinesis that ends closed shards, which moto never does."""
    home = SERVERS / "node" / "node_modules" / "kinesis-local"
    assert home.exists(), f"{home} is missing; .ci/servers.sh installs it"
    port = free_port()
    steps = ["CREATE_STREAM", "UPDATE_SHARD_COUNT"]
    env = {**os.environ, "KINESIS_MOCK_PLAIN_PORT": str(port), "KINESIS_MOCK_TLS_PORT": str(free_port()),
           "LOG_LEVEL": "ERROR", **{f"{step}_DURATION": "1ms" for step in steps}}
    with open(tmp_path / "kinesis-local.log", "w") as log:
        server = subprocess.Popen([shutil.which("node"), "main.js"], cwd=home, env=env, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(url))
        yield url
    finally:
        server.kill()
        server.wait()


class Producer:
    """Numbers records per key, each key's in order."""

    def __init__(self, kinesis, stream):
        self.kinesis, self.stream, self.next = kinesis, stream, 0

    def put(self, rounds):
        for _ in range(rounds):
            records = [{"PartitionKey": f"cart-{key}", "Data": str(self.next).encode()} for key in range(40)]
            answer = self.kinesis.put_records(StreamName=self.stream, Records=records)
            assert answer["FailedRecordCount"] == 0
            self.next += 1

    def all_are_in(self, records):
        """Whether every record was processed."""
        return len({(r["key"], r["data"]) for r in list(records)}) == 40 * self.next


def rows(aws, table):
    return [
        {name: next(iter(value.values())) for name, value in item.items()}
        for item in aws.client("dynamodb").scan(TableName=table)["Items"]
    ]


class Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(handler):
    """A server on loopback while it lasts."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def metrics():
    """A server that takes metrics, since moto has another protocol for them, and the bodies that it got."""
    bodies = []

    class Sink(Quiet):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            self.send_response(200)
            self.send_header("smithy-protocol", "rpc-v2-cbor")
            self.end_headers()
            self.wfile.write(b"\xa0")  # An empty map.

    with served(Sink) as url:
        yield url, bodies


def test_a_doubling_by_stack_update_loses_nothing(aws, kinesis_local, metrics, tmp_path):
    """Templates and lease table on moto. The stream's records are on kinesis-local, since moto never ends a closed
    shard and renumbers records: it is given the number of shards that the stack's stream turns out to have."""
    parameters = dict(StreamName="cart-queue", ShardCount=4)
    table = aws.deploy("lease-table.yaml", Application="cart-worker", Stream="cart-queue")
    stream = aws.deploy("stream.yaml", **parameters)
    variables = {f"CONSUMER_{name}": table[output] for name, output in [
        ("APPLICATION", "Application"), ("LEASE_TABLE_NAME", "LeaseTableName")]}

    def shards_of_the_stack():
        described = aws.client("kinesis").describe_stream_summary(StreamName=stream["Stream"])
        return described["StreamDescriptionSummary"]["OpenShardCount"]

    kinesis = boto3.client("kinesis", endpoint_url=kinesis_local, region_name=REGION,
                           aws_access_key_id="test", aws_secret_access_key="test")
    kinesis.create_stream(StreamName=stream["Stream"], ShardCount=shards_of_the_stack())
    active = lambda: kinesis.describe_stream_summary(StreamName=stream["Stream"])[
        "StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE"
    eventually(active)
    producer = Producer(kinesis, stream["Stream"])
    producer.put(5)
    with Service(tmp_path, **variables, CONSUMER_STREAM=stream["Stream"], AWS_ENDPOINT_URL=aws.url,
                 AWS_ENDPOINT_URL_KINESIS=kinesis_local, AWS_ENDPOINT_URL_CLOUDWATCH=metrics[0],
                 CONSUMER_METRICS_LEVEL="summary") as service:
        eventually(lambda: producer.all_are_in(service.records))
        assert service.probe() == 0

        producer.put(5)
        aws.deploy("stream.yaml", **{**parameters, "ShardCount": 8})
        assert shards_of_the_stack() == 8
        kinesis.update_shard_count(StreamName=stream["Stream"], TargetShardCount=8, ScalingType="UNIFORM_SCALING")
        producer.put(5)
        eventually(active)
        producer.put(5)
        eventually(lambda: producer.all_are_in(service.records))
        assert len({record["shard"] for record in service.records}) == 12
        eventually(lambda: len([r for r in rows(aws, "cart-worker") if r["checkpoint"] != "SHARD_END"]) == 8)
        assert service.stop() == 0, service.log.read_text()
        # It stopped on purpose, so the probe must not wait for a file that nobody touches.
        assert service.probe() == 2

    by_key = {}
    for record in service.records:
        by_key.setdefault(record["key"], []).append(int(record["data"]))
    assert by_key == {f"cart-{key}": list(range(producer.next)) for key in range(40)}, "each once, in order"
    assert [row["leaseKey"] for row in rows(aws, "cart-worker") if "leaseOwner" in row] == [], "all released"
    assert len(aws.client("dynamodb").list_tables()["TableNames"]) == 1
    # At the latest with the stop. Levels and lag are measured once a minute only, by the date.
    body = b"".join(metrics[1])
    for text in (b"cart-worker", b"Operation", b"TakenLeases", b"RecordsProcessed"):
        assert text in body, text


def test_a_missing_table_is_refused_and_none_is_made(aws, tmp_path):
    aws.deploy("stream.yaml", StreamName="cart-queue", ShardCount=1)
    with Service(tmp_path, **REQUIRED, AWS_ENDPOINT_URL=aws.url) as service:
        assert service.process.wait(timeout=60) == 1
    assert "lease table cart-worker does not exist" in service.log.read_text()
    assert aws.client("dynamodb").list_tables()["TableNames"] == []


def test_the_role_suffices_and_allows_nothing_else(aws, tmp_path):
    """moto checks actions, not resources: the policy's are widened to all."""
    aws.deploy("lease-table.yaml", Application="cart-worker", Stream="cart-queue")
    aws.deploy("stream.yaml", StreamName="cart-queue", ShardCount=2)
    kinesis = aws.client("kinesis")
    producer = Producer(kinesis, "cart-queue")
    producer.put(3)
    resources, _ = templates.filled(templates.load("consumer-role.yaml"), Application="cart-worker")
    policy = {"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": sorted(templates.actions(resources["ConsumerPolicy"])), "Resource": "*"}]}
    iam = aws.client("iam")
    iam.create_user(UserName="consumer")
    iam.put_user_policy(UserName="consumer", PolicyName="p", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="consumer")["AccessKey"]
    requests.post(f"{aws.url}/moto-api/reset-auth", data="0", timeout=10).raise_for_status()
    credentials = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    with Service(tmp_path, **REQUIRED, **credentials, AWS_ENDPOINT_URL=aws.url) as service:
        eventually(lambda: producer.all_are_in(service.records))
        assert service.stop() == 0, service.log.read_text()
    consumer = boto3.client("dynamodb", endpoint_url=aws.url, region_name=REGION, aws_access_key_id=key["AccessKeyId"],
                            aws_secret_access_key=key["SecretAccessKey"])
    with pytest.raises(consumer.exceptions.ClientError, match="AccessDenied"):
        consumer.delete_table(TableName="cart-worker")


@pytest.fixture
def stocked(aws):
    """A table and a stream by the templates, with records in it."""
    aws.deploy("lease-table.yaml", Application="cart-worker", Stream="cart-queue")
    aws.deploy("stream.yaml", StreamName="cart-queue", ShardCount=2)
    producer = Producer(aws.client("kinesis"), "cart-queue")
    producer.put(3)
    return aws, producer


def test_a_worker_that_keeps_its_leases_goes_on_with_them_at_once(stocked, tmp_path):
    aws, producer = stocked
    keep = {**REQUIRED, "CONSUMER_ON_SHUTDOWN": "keep", "CONSUMER_WORKER_ID": "consumer-0", "AWS_ENDPOINT_URL": aws.url,
            # Longer than this test waits.
            "CONSUMER_FAILOVER_TIME": "120s"}
    with Service(tmp_path, **keep) as service:
        eventually(lambda: producer.all_are_in(service.records))
        before = service.records
        assert service.stop() == 0, service.log.read_text()
    assert {row["leaseOwner"] for row in rows(aws, "cart-worker")} == {"consumer-0"}
    producer.put(3)
    with Service(tmp_path, **keep) as service:
        eventually(lambda: producer.all_are_in(before + service.records))


def test_operators_may_do_what_their_policies_say_and_no_more(stocked, tmp_path):
    """moto checks actions, not resources: the policies' are widened to all."""
    aws, producer = stocked
    with Service(tmp_path, **REQUIRED, AWS_ENDPOINT_URL=aws.url) as service:
        eventually(lambda: producer.all_are_in(service.records))
        assert service.stop() == 0, service.log.read_text()
    producer.put(1)
    dynamodb, iam = aws.client("dynamodb"), aws.client("iam")
    first, second = sorted(row["leaseKey"] for row in rows(aws, "cart-worker"))

    resources, _ = templates.filled(templates.load("consumer-role.yaml"), Application="cart-worker")
    look, change = (templates.actions(resources[name]) for name in ["OperatorPolicy", "OperatorChangePolicy"])

    def operator(name, actions):
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": sorted(actions), "Resource": "*"}]}
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        credentials = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
                       "AWS_REGION": REGION, "AWS_ENDPOINT_URL": aws.url}

        def leasectl(*arguments):
            call = [LEASECTL, *arguments, "--table", "cart-worker"]
            return subprocess.run(call, env=credentials, capture_output=True, text=True, timeout=60)

        return leasectl

    looker, changer = operator("looker", look), operator("changer", look | change)
    exported = tmp_path / "rows"
    # What is to change: a row that is gone, and one that a dead worker holds.
    assert looker("export", "--file", str(exported)).returncode == 0
    dynamodb.delete_item(TableName="cart-worker", Key={"leaseKey": {"S": first}})
    dynamodb.update_item(TableName="cart-worker", Key={"leaseKey": {"S": second}},
                         UpdateExpression="SET leaseOwner = :dead", ExpressionAttributeValues={":dead": {"S": "dead"}})
    requests.post(f"{aws.url}/moto-api/reset-auth", data="0", timeout=10).raise_for_status()

    for command in ["list", "describe", "lag", "tail --from trim-horizon", "export", "cost"]:
        done = looker(*command.split())
        assert done.returncode == 0, (command, done.stderr)
    assert first in looker("lag").stdout, "though its row is gone"
    before = looker("export").stdout
    for command in [f"import --file {exported}", "reset --to-trim-horizon --force"]:
        denied = looker(*command.split())
        assert denied.returncode == 1 and looker("export").stdout == before, (command, denied)
    for command in ["drain dead --force --timeout 100ms", f"import --file {exported} --overwrite", "reset --to-trim-horizon"]:
        done = changer(*command.split())
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    lag = json.loads(changer("lag", "--output", "json").stdout)
    assert {shard["what"] for shard in lag["shards"]} == {"behind"}, lag


def test_prometheus_finds_what_scalers_ask_for(stocked, rendered, tmp_path):
    aws, producer = stocked
    url = f"http://127.0.0.1:{free_port()}"
    variables = {**REQUIRED, "AWS_ENDPOINT_URL": aws.url, "CONSUMER_METRICS_ADDRESS": url.removeprefix("http://")}
    (scaler,) = [thing for thing in rendered("hpa") if thing["kind"] == "HorizontalPodAutoscaler"]
    metric = scaler["spec"]["metrics"][0]["external"]["metric"]
    lag = metric["name"] + "{" + ",".join(f'{name}="{value}"' for name, value in metric["selector"]["matchLabels"].items())
    with Service(tmp_path, **variables) as service:
        eventually(lambda: producer.all_are_in(service.records))
        # Lag is measured every ten seconds.
        eventually(lambda: f"\n{lag}}}" in requests.get(f"{url}/metrics", timeout=10).text)
        page = requests.get(f"{url}/metrics", timeout=10)
        assert service.stop() == 0, service.log.read_text()
    assert page.headers["Content-Type"].startswith("application/openmetrics-text")
    assert "\nkinesis_consumer_records_total{" in page.text


# No keys of its own, and none from a file or from the machine.
NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nowhere"}


@pytest.fixture
def asked():
    """A server that gives out credentials, and what it was asked: path, authorization and body."""
    questions = []
    keys = {"AccessKeyId": "FROMTHESERVER", "SecretAccessKey": "s", "Token": "t", "Expiration": "2099-01-01T00:00:00Z"}
    sts = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
        <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>FROMTHESERVER</AccessKeyId>
        <SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>
        </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""

    class Keys(Quiet):
        def answer(self, text):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
            questions.append((self.path, self.headers["Authorization"], body))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self):
            self.answer(json.dumps(keys))

        def do_POST(self):
            self.answer(sts)

    with served(Keys) as url:
        yield url, questions


def test_credentials_come_from_the_pod_identity_agent(stocked, asked, tmp_path):
    (aws, producer), (url, questions) = stocked, asked
    token = tmp_path / "token"
    token.write_text("token-of-the-account")
    # What EKS sets in a pod; there the address is 169.254.170.23.
    pod = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/v1/credentials",
           "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token)}
    with Service(tmp_path, **REQUIRED, **NO_KEYS, **pod, AWS_ENDPOINT_URL=aws.url) as service:
        eventually(lambda: producer.all_are_in(service.records))
        assert service.stop() == 0, service.log.read_text()
    assert ("/v1/credentials", "token-of-the-account", "") in questions


def test_credentials_come_from_the_role_of_the_service_account(stocked, asked, tmp_path):
    """IRSA: STS changes the token of the service account for credentials of the role."""
    (aws, producer), (url, questions) = stocked, asked
    token = tmp_path / "token"
    token.write_text("token-of-the-account")
    pod = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/cart-worker",
           "AWS_ENDPOINT_URL_STS": url}
    with Service(tmp_path, **REQUIRED, **NO_KEYS, **pod, AWS_ENDPOINT_URL=aws.url) as service:
        eventually(lambda: producer.all_are_in(service.records))
        assert service.stop() == 0, service.log.read_text()
    _, _, body = questions[0]
    assert "Action=AssumeRoleWithWebIdentity" in body and "WebIdentityToken=token-of-the-account" in body
