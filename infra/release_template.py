"""The template for those who deploy released zips: expanded, so that CloudFormation alone can use it."""

import os

import sam_template

TEMPLATE = os.path.join(os.path.dirname(__file__), "template.yaml")
PARAMETERS = {
    "ArtifactBucket": {
        "Type": "String",
        "AllowedPattern": "[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
        "Description": "A bucket of the stack's region with the release's zips",
    },
    "ArtifactPrefix": {
        "Type": "String",
        "Default": "",
        "AllowedPattern": "|[A-Za-z0-9._/-]+/",
        "Description": "The folder of the zips in that bucket, with a slash at its end",
    },
}


def packaged(architecture, zips):
    """Returns the expanded template for an architecture, whose functions are zips in a bucket of the operator.

    `zips` has the names by binary. A name holds the content's digest, so that another content is another version.
    """
    template = sam_template.load(TEMPLATE)
    template["Parameters"].update(PARAMETERS)
    template["Globals"]["Function"]["Architectures"] = [architecture]
    names = {
        name: zips[resource["Metadata"]["BuildProperties"]["Binary"]]
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::Serverless::Function"
    }
    values = sam_template.parameters_of(template, {}, fill_in=True)
    expanded = sam_template.expand(template, values, {name: f"s3://bucket/{file}" for name, file in names.items()})
    for name, file in names.items():
        # The translator would put the values of the parameters in.
        key = {"Fn::Sub": "${ArtifactPrefix}" + file}
        expanded["Resources"][name]["Properties"]["Code"] = {"S3Bucket": {"Ref": "ArtifactBucket"}, "S3Key": key}
    return expanded
