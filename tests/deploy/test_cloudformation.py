"""The templates in cloudformation/: linted, checked for what linters let pass, and applied to moto."""

import copy
import json
import re
import subprocess

import botocore.session
import pytest

import templates
from templates import BIN

STREAM_ARN = "arn:aws:kinesis:us-east-1:123456789012:stream/cart-queue"
TABLE_ARN = "arn:aws:dynamodb:us-east-1:123456789012:table/cart-worker"
OWN_KEY = "arn:aws:kms:us-east-1:123456789012:key/k"
# Each template with its defaults, and with everything that it can be told to do otherwise.
VARIANTS = [
    ("lease-table.yaml", {}),
    ("lease-table.yaml", {"LeaseTableName": "leases", "KclIndex": "false", "KmsKeyArn": OWN_KEY}),
    ("stream.yaml", {}),
    ("stream.yaml", {"StreamMode": "ON_DEMAND"}),
    ("consumer-role.yaml", {}),
    ("consumer-role.yaml", {"ClusterName": "eks", "StreamKeyArn": OWN_KEY, "KclCompatible": "true"}),
    ("consumer-role.yaml", {"Identity": "IRSA", "OidcProvider": "oidc.eks.us-east-1.amazonaws.com/id/A1"}),
    ("observability.yaml", {}),
    ("observability.yaml", {"AlarmTopicArn": "arn:aws:sns:us-east-1:123456789012:alarms"}),
    ("quickstart.yaml", {}),
    ("quickstart.yaml", {"ClusterName": "eks"}),
]


def test_every_template_is_clean_to_the_linter():
    files = sorted(templates.FOLDER.glob("*.yaml"))
    assert {file.name for file in files} == {name for name, _ in VARIANTS}
    lint = subprocess.run([BIN / "cfn-lint", "-c", "I", "--", *files], capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout + lint.stderr


@pytest.mark.parametrize("name, parameters", VARIANTS)
def test_every_variant_is_clean_to_the_checks_that_linters_lack(name, parameters):
    resources, _ = templates.filled(templates.load(name), **parameters)
    assert list(templates.findings(resources, keep=name != "quickstart.yaml")) == []


SEEDS = {
    "a billing mode that is none": (
        ("lease-table.yaml", "LeaseTable", "BillingMode", "ON_DEMAND"), "unknown value: LeaseTable.BillingMode"),
    "provisioned capacity": (
        ("lease-table.yaml", "LeaseTable", "BillingMode", "PROVISIONED"), "not on demand: LeaseTable"),
    "a projection that is none": (
        ("lease-table.yaml", "LeaseTable", "GlobalSecondaryIndexes",
         [{"Projection": {"ProjectionType": "KEYSONLY"}}]), "unknown value: LeaseTable.GlobalSecondaryIndexes"),
    "leases that expire by TTL": (
        ("lease-table.yaml", "LeaseTable", "TimeToLiveSpecification", {"Enabled": True}), "leases vanish by time"),
    "a stream without a shard count": (
        ("stream.yaml", "DataStream", "StreamModeDetails", {"StreamMode": "ON_DEMAND"}),
        "shard count and mode do not go together"),
    "a comparison that is none": (
        ("observability.yaml", "StreamLag", "ComparisonOperator", "GreaterThan"),
        "unknown value: StreamLag.ComparisonOperator"),
    "a dashboard with a comma too many": (
        ("observability.yaml", "Dashboard", "DashboardBody", '{"widgets": [],}'), "the dashboard is no JSON"),
}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seeded_error_is_found_by_name(seed):
    (name, resource, key, value), finding = SEEDS[seed]
    resources, _ = templates.filled(templates.load(name))
    resources[resource]["Properties"][key] = value
    assert any(found.startswith(finding) for found in templates.findings(resources))


@pytest.mark.parametrize("policy", ["DeletionPolicy", "UpdateReplacePolicy"])
def test_data_that_would_go_with_its_stack_is_found(policy):
    for name, resource in [("lease-table.yaml", "LeaseTable"), ("stream.yaml", "DataStream")]:
        template = copy.deepcopy(templates.load(name))
        del template["Resources"][resource][policy]
        resources, _ = templates.filled(template)
        assert any(found.startswith(f"not retained: {resource}") for found in templates.findings(resources))


def test_shards_can_only_be_doubled_and_halved():
    allowed = templates.load("stream.yaml")["Parameters"]["ShardCount"]["AllowedValues"]
    assert allowed == [2**power for power in range(11)]


def source_of(*path):
    """A file of src, without its tests."""
    return templates.ROOT.joinpath("src", *path).read_text().split("#[cfg(test)]")[0]


def calls_in(source, service):
    """The AWS calls in a piece of source, as IAM actions: each method named like an operation of the service."""
    operations = botocore.session.get_session().get_service_model(service).operation_names
    names = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): name for name in operations}
    called = set(re.findall(r"\.(\w+)\(\)", source)) & names.keys()
    return {f"{service}:{names[name]}" for name in called}


def calls_in_source():
    """The AWS calls in src/io."""
    found = set()
    for file in (templates.ROOT / "src" / "io").glob("*.rs"):
        if file.name == "lease_rows.rs":
            continue  # the operator's tool runs with an operator's permissions
        source = source_of("io", file.name)
        for service in set(re.findall(r"\baws_sdk_(\w+)", source)):
            found |= calls_in(source, service)
    return found


def functions(source):
    """The functions of a file, by name, with their bodies."""
    parts = re.split(r"\bfn (\w+)", source)
    return dict(zip(parts[1::2], parts[2::2]))


def calls_of_methods(file, service):
    """What each function of a file in src/io calls, by itself and by others of the file."""
    bodies = functions(source_of("io", file))

    def calls(name, seen):
        inner = set(re.findall(r"\bself\.(\w+)\(", bodies[name])) & bodies.keys() - seen
        return calls_in(bodies[name], service).union(*(calls(other, seen | {other}) for other in inner))

    return {name: calls(name, {name}) for name in bodies}


def calls_of_the_tool(sources):
    """What these sources of src/cli call through a lease store, a record source, or rows as they are stored."""
    doors = {"store": [("dynamodb.rs", "dynamodb"), ("lease_rows.rs", "dynamodb")],
             "source": [("kinesis.rs", "kinesis")], "rows()": [("lease_rows.rs", "dynamodb")]}
    found = set()
    for door, files in doors.items():
        methods = set(re.findall(re.escape(door) + r"\s*\.(\w+)\(", "".join(sources)))
        for file, service in files:
            known = calls_of_methods(file, service)
            found.update(*(known[method] for method in methods & known.keys()))
    return found


def test_the_role_allows_exactly_the_calls_that_the_source_makes():
    resources, _ = templates.filled(templates.load("consumer-role.yaml"))
    calls = calls_in_source()
    assert "kinesis:GetRecords" in calls and "dynamodb:UpdateItem" in calls
    # lease-table.yaml makes the table.
    allowed = templates.actions(resources["ConsumerPolicy"])
    assert allowed == calls - {"dynamodb:CreateTable"}
    trial, _ = templates.filled(templates.load("quickstart.yaml"))
    assert templates.actions(trial["ConsumerPolicy"]) == allowed


def test_operators_are_allowed_exactly_the_calls_that_their_tool_makes():
    names = [str(file.relative_to(templates.ROOT / "src")) for file in (templates.ROOT / "src" / "cli").rglob("*.rs")]
    sources = {name.removeprefix("cli/"): source_of(name) for name in names}
    changing = [sources.pop("reset.rs"), sources.pop("release.rs")]
    rows = functions(sources.pop("rows.rs"))
    looking = [*sources.values(), rows.pop("export")]
    changing += rows.values()
    assert "open(true)" not in "".join(looking + changing), "the tool makes no table"
    look = calls_of_the_tool(looking) - {"dynamodb:CreateTable"}
    change = calls_of_the_tool(changing) - {"dynamodb:CreateTable"} - look
    assert {"kinesis:GetRecords", "dynamodb:ListTables"} <= look and "dynamodb:UpdateItem" in change
    resources, _ = templates.filled(templates.load("consumer-role.yaml"))
    assert templates.actions(resources["OperatorPolicy"]) == look
    assert templates.actions(resources["OperatorChangePolicy"]) == change
    own_key, outputs = templates.filled(templates.load("consumer-role.yaml"), StreamKeyArn=OWN_KEY)
    assert templates.actions(own_key["KeyPolicy"]) == {"kms:Decrypt"} and "KeyPolicyArn" in outputs


def test_no_policy_reaches_beyond_its_stream_and_table():
    parameters = {"StreamArn": STREAM_ARN, "LeaseTableArn": TABLE_ARN, "StreamKeyArn": OWN_KEY,
                  "Application": "cart-worker", "KclCompatible": "true"}
    resources, _ = templates.filled(templates.load("consumer-role.yaml"), **parameters)
    for name, resource in resources.items():
        for statement in templates.statements(resource) if name.endswith("Policy") else []:
            assert "*" not in json.dumps(statement["Action"]), name
            where = statement["Resource"]
            for arn in [where] if isinstance(where, str) else where:
                narrow = arn.startswith((STREAM_ARN, TABLE_ARN, OWN_KEY))
                # These know no resources; writing metrics is narrowed by the namespace instead.
                wide = statement["Action"] in (
                    "cloudwatch:PutMetricData", "cloudwatch:GetMetricData", "dynamodb:ListTables")
                assert narrow or wide, (name, arn)
                if statement["Action"] == "cloudwatch:PutMetricData":
                    assert statement["Condition"] == {"StringEquals": {"cloudwatch:namespace": "cart-worker"}}


def test_the_kcl_policy_adds_what_the_kcl_needs_beyond_ours():
    resources, _ = templates.filled(templates.load("consumer-role.yaml"), KclCompatible="true")
    added = templates.actions(resources["KclPolicy"])
    assert {"dynamodb:CreateTable", "dynamodb:UpdateTable", "dynamodb:Query", "kinesis:SubscribeToShard"} <= added


def test_the_role_is_trusted_by_one_service_account_alone():
    role = templates.load("consumer-role.yaml")
    pods, _ = templates.filled(role, Namespace="shop", ServiceAccount="cart")
    (statement,) = pods["Role"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "pods.eks.amazonaws.com"}
    assert statement["Condition"]["StringEquals"] == {
        "aws:RequestTag/kubernetes-namespace": "shop", "aws:RequestTag/kubernetes-service-account": "cart"}
    irsa, _ = templates.filled(
        role, Identity="IRSA", OidcProvider="oidc/id/A1", Namespace="shop", ServiceAccount="cart")
    (statement,) = json.loads(irsa["Role"]["Properties"]["AssumeRolePolicyDocument"])["Statement"]
    assert statement["Principal"] == {"Federated": "arn:aws:iam::123456789012:oidc-provider/oidc/id/A1"}
    assert statement["Condition"]["StringEquals"] == {
        "oidc/id/A1:aud": "sts.amazonaws.com", "oidc/id/A1:sub": "system:serviceaccount:shop:cart"}


def published():
    """The metrics that a worker publishes by default, as pairs of operation and name."""
    source = (templates.ROOT / "src" / "core" / "metrics.rs").read_text()
    return set(re.findall(r'^ +\w+ +"([\w:]+)" +"([\w.]+)" +\w+ +Summary +\w+ +\w+;$', source, re.M))


def test_alarms_and_dashboard_ask_for_metrics_that_are_published():
    known = published()
    assert ("TakeLeases", "NeededLeases") in known
    resources, _ = templates.filled(templates.load("observability.yaml"), Application="cart-worker")
    asked = set()
    for resource in resources.values():
        properties = resource["Properties"]
        if properties.get("Namespace") == "cart-worker":
            ((name, operation),) = [(d["Name"], d["Value"]) for d in properties["Dimensions"]]
            assert name == "Operation", "without worker and shard, so that it outlives both"
            asked.add((operation, properties["MetricName"]))
        for widget in json.loads(properties.get("DashboardBody", '{"widgets": []}'))["widgets"]:
            for namespace, name, *dimensions in widget["properties"].get("metrics", []):
                if namespace == "cart-worker":
                    assert dimensions[0] == "Operation"
                    asked.add((dimensions[1], name))
    assert asked - known == set()
    assert len(asked) >= 12


def test_the_dashboard_shows_every_alarm():
    resources, _ = templates.filled(templates.load("observability.yaml"))
    body = json.loads(resources["Dashboard"]["Properties"]["DashboardBody"])
    shown = next(w["properties"]["alarms"] for w in body["widgets"] if w["type"] == "alarm")
    alarms = [name for name, resource in resources.items() if resource["Type"] == "AWS::CloudWatch::Alarm"]
    assert sorted(shown) == sorted(f"<{name}.Arn>" for name in alarms)


def test_the_lease_table_that_results_is_what_the_template_says(aws):
    outputs = aws.deploy("lease-table.yaml", Application="cart-worker", Stream="cart-queue")
    assert outputs["LeaseTableName"] == "cart-worker"
    table = aws.client("dynamodb").describe_table(TableName="cart-worker")["Table"]
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert table["KeySchema"] == [{"AttributeName": "leaseKey", "KeyType": "HASH"}]
    assert table["DeletionProtectionEnabled"] is True
    (index,) = table["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "LeaseOwnerToLeaseKeyIndex"
    assert index["KeySchema"] == [{"AttributeName": "leaseOwner", "KeyType": "HASH"}]
    assert index["Projection"] == {"ProjectionType": "KEYS_ONLY"}
    assert outputs["LeaseTableArn"] == table["TableArn"]
    tags = aws.client("dynamodb").list_tags_of_resource(ResourceArn=table["TableArn"])["Tags"]
    assert {"Key": "stream", "Value": "cart-queue"} in tags


def test_the_lease_table_can_be_named_and_bare(aws):
    outputs = aws.deploy("lease-table.yaml", Application="app", Stream="s", LeaseTableName="leases", KclIndex="false")
    assert outputs["LeaseTableName"] == "leases"
    table = aws.client("dynamodb").describe_table(TableName="leases")["Table"]
    assert not table.get("GlobalSecondaryIndexes")
    assert table["AttributeDefinitions"] == [{"AttributeName": "leaseKey", "AttributeType": "S"}]


def test_table_and_stream_outlive_their_stacks(aws):
    aws.deploy("lease-table.yaml", Application="cart-worker", Stream="cart-queue")
    aws.deploy("stream.yaml", StreamName="cart-queue")
    aws.delete("lease-table.yaml")
    aws.delete("stream.yaml")
    assert aws.client("cloudformation").describe_stacks()["Stacks"] == []
    assert aws.client("dynamodb").list_tables()["TableNames"] == ["cart-worker"]
    assert aws.client("kinesis").list_streams()["StreamNames"] == ["cart-queue"]


def test_an_update_of_the_shard_count_doubles_the_stream(aws):
    outputs = aws.deploy("stream.yaml", StreamName="cart-queue", ShardCount=4)
    kinesis = aws.client("kinesis")
    summary = kinesis.describe_stream_summary(StreamName="cart-queue")["StreamDescriptionSummary"]
    assert (summary["OpenShardCount"], summary["RetentionPeriodHours"]) == (4, 48)
    assert outputs == {"Stream": "cart-queue", "StreamArn": summary["StreamARN"]}
    aws.deploy("stream.yaml", StreamName="cart-queue", ShardCount=8)
    summary = kinesis.describe_stream_summary(StreamName="cart-queue")["StreamDescriptionSummary"]
    assert summary["OpenShardCount"] == 8
    # The parents stay, closed, until their records have expired.
    assert len(kinesis.list_shards(StreamName="cart-queue")["Shards"]) == 12


@pytest.mark.parametrize("parameters", [
    {}, {"Identity": "IRSA", "OidcProvider": "oidc/id/A1"}, {"KclCompatible": "true", "StreamKeyArn": OWN_KEY}])
def test_the_role_that_results_carries_its_policies(aws, parameters):
    outputs = aws.deploy("consumer-role.yaml", Application="cart-worker", StreamArn=STREAM_ARN,
                         LeaseTableArn=TABLE_ARN, **parameters)
    iam = aws.client("iam")
    (role,) = [r for r in iam.list_roles()["Roles"] if r["Arn"] == outputs["RoleArn"]]
    trust = role["AssumeRolePolicyDocument"]
    trust = json.loads(trust) if isinstance(trust, str) else trust
    service = trust["Statement"][0]["Principal"]
    assert list(service) == (["Federated"] if "Identity" in parameters else ["Service"])
    attached = iam.list_attached_role_policies(RoleName=role["RoleName"])["AttachedPolicies"]
    assert len(attached) == (3 if "KclCompatible" in parameters else 1)


def test_the_trial_stack_leaves_nothing_behind(aws):
    outputs = aws.deploy("quickstart.yaml")
    assert {"Application", "Stream", "LeaseTableName", "RoleArn"} == outputs.keys()
    assert aws.client("dynamodb").list_tables()["TableNames"] == [outputs["LeaseTableName"]]
    aws.delete("quickstart.yaml")
    assert aws.client("dynamodb").list_tables()["TableNames"] == []
    assert aws.client("kinesis").list_streams()["StreamNames"] == []


def test_alarms_and_dashboard_are_taken_by_the_api(aws):
    """Not as a stack: moto makes no alarms of a template. The client checks every name and type."""
    parameters = {"Application": "cart-worker", "Stream": "cart-queue", "LeaseTableName": "cart-worker",
                  "AlarmTopicArn": "arn:aws:sns:us-east-1:123456789012:alarms"}
    resources, _ = templates.filled(templates.load("observability.yaml"), **parameters)
    cloudwatch = aws.client("cloudwatch")
    for name, resource in resources.items():
        properties = resource["Properties"]
        if resource["Type"] == "AWS::CloudWatch::Alarm":
            cloudwatch.put_metric_alarm(AlarmName=name, **properties)
        else:
            cloudwatch.put_dashboard(**properties)
    alarms = {alarm["AlarmName"]: alarm for alarm in cloudwatch.describe_alarms()["MetricAlarms"]}
    assert len(alarms) == len(resources) - 1 == 13
    assert all(alarm["AlarmActions"] == [parameters["AlarmTopicArn"]] for alarm in alarms.values())
    # Silence is an alarm where it means that nobody reads.
    loud = {name for name, alarm in alarms.items() if alarm["TreatMissingData"] == "breaching"}
    assert loud == {"StreamLag", "ApplicationLag", "UnownedShards"}
    dashboard = cloudwatch.get_dashboard(DashboardName="cart-worker-consumer")
    assert len(json.loads(dashboard["DashboardBody"])["widgets"]) == 9
