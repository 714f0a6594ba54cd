"""CloudFormation templates: read, filled in with parameters, and checked for what linters let pass."""

import json
import re
import sys
from pathlib import Path

import botocore.session
from cfnlint.decode import cfn_yaml

ROOT = Path(__file__).resolve().parents[2]
# Where the tools are.
BIN = Path(sys.executable).parent
FOLDER = ROOT / "cloudformation"
NO_VALUE = object()
PSEUDO = {
    "AWS::AccountId": "123456789012",
    "AWS::NoValue": NO_VALUE,
    "AWS::Partition": "aws",
    "AWS::Region": "us-east-1",
    "AWS::StackName": "stack",
}
# Which call takes the properties of a resource, under the same names.
CALLS = {
    "AWS::CloudWatch::Alarm": [("cloudwatch", "PutMetricAlarm")],
    "AWS::DynamoDB::Table": [("dynamodb", "CreateTable")],
    "AWS::Kinesis::Stream": [("kinesis", "CreateStream"), ("kinesis", "StartStreamEncryption")],
}


def load(name):
    """The template as plain dictionaries, intrinsic functions in their long form."""
    return json.loads(json.dumps(cfn_yaml.load(str(FOLDER / name))))


def filled(template, **parameters):
    """The template's resources and outputs as CloudFormation would make them with these parameters."""
    values = dict(PSEUDO)
    for name, parameter in template.get("Parameters", {}).items():
        values[name] = parameters.pop(name, parameter.get("Default", name))
    assert not parameters, f"no such parameters: {parameters}"
    conditions = {}

    def condition(name):
        if name not in conditions:
            conditions[name] = fill(template["Conditions"][name])
        return conditions[name]

    def sub(text, own=None):
        def one(match):
            name = match[1]
            if own and name in own:
                return str(fill(own[name]))
            return str(values.get(name, f"<{name}>"))

        return re.sub(r"\$\{([^!}]+)\}", one, text)

    def fill(node):
        if isinstance(node, list):
            return [value for value in map(fill, node) if value is not NO_VALUE]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            (key, value), = node.items()
            match key:
                case "Ref":
                    return values.get(value, f"<{value}>")
                case "Fn::GetAtt":
                    return f"<{value if isinstance(value, str) else '.'.join(value)}>"
                case "Fn::Sub":
                    return sub(value) if isinstance(value, str) else sub(*value)
                case "Fn::If":
                    return fill(value[1] if condition(value[0]) else value[2])
                case "Fn::Equals":
                    return str(fill(value[0])) == str(fill(value[1]))
                case "Fn::Not":
                    return not fill(value[0])
                case "Fn::And":
                    return all(map(fill, value))
                case "Condition":
                    return condition(value)
                case _ if key.startswith("Fn::"):
                    raise ValueError(f"{key} is not understood here")
        filled = {key: fill(value) for key, value in node.items()}
        return {key: value for key, value in filled.items() if value is not NO_VALUE}

    def wanted(resource):
        return "Condition" not in resource or condition(resource["Condition"])

    def whole(resource):
        return {k: v if k == "Condition" else fill(v) for k, v in resource.items()}

    resources = {name: whole(r) for name, r in template["Resources"].items() if wanted(r)}
    outputs = {name: fill(output["Value"]) for name, output in template.get("Outputs", {}).items()}
    return resources, outputs


def statements(resource):
    """The statements of a policy."""
    return resource["Properties"]["PolicyDocument"]["Statement"]


def actions(resource):
    """What a policy allows."""
    found = set()
    for statement in statements(resource):
        action = statement["Action"]
        found.update([action] if isinstance(action, str) else action)
    return found


def enum_errors(value, shape, path):
    """The values that are none of those that the AWS API knows, by botocore's model of it."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for key, inner in value.items():
            if key in shape.members:
                yield from enum_errors(inner, shape.members[key], f"{path}.{key}")
    elif shape.type_name == "list" and isinstance(value, list):
        for inner in value:
            yield from enum_errors(inner, shape.member, path)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{path} is {value!r}, not one of {', '.join(shape.enum)}"


def findings(resources, keep=True):
    """What is wrong with resources that a linter and an emulator would take; `keep`: data must outlive the stack."""
    session = botocore.session.get_session()
    for name, resource in resources.items():
        kind, properties = resource["Type"], resource.get("Properties", {})
        for service, call in CALLS.get(kind, []):
            shape = session.get_service_model(service).operation_model(call).input_shape
            yield from (f"unknown value: {error}" for error in enum_errors(properties, shape, name))
        if kind == "AWS::DynamoDB::Table" and properties.get("BillingMode") != "PAY_PER_REQUEST":
            yield f"not on demand: {name}"
        if kind in ("AWS::DynamoDB::Table", "AWS::Kinesis::Stream"):
            policies = [resource.get("DeletionPolicy"), resource.get("UpdateReplacePolicy")]
            if policies != ["Retain" if keep else "Delete"] * 2:
                yield f"not retained: {name} has {policies}"
        if kind == "AWS::DynamoDB::Table" and "TimeToLiveSpecification" in properties:
            yield f"leases vanish by time: {name}"
        if kind == "AWS::Kinesis::Stream":
            on_demand = properties.get("StreamModeDetails", {}).get("StreamMode") == "ON_DEMAND"
            if on_demand == ("ShardCount" in properties):
                yield f"shard count and mode do not go together: {name}"
        if kind == "AWS::CloudWatch::Dashboard":
            try:
                json.loads(properties["DashboardBody"])
            except ValueError as error:
                yield f"the dashboard is no JSON: {name}: {error}"
        if kind == "AWS::IAM::Role" and isinstance(properties["AssumeRolePolicyDocument"], str):
            try:
                json.loads(properties["AssumeRolePolicyDocument"])
            except ValueError as error:
                yield f"the trust policy is no JSON: {name}: {error}"
