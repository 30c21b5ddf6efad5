"""The peer of `incident-fetch`: a plain Lambda function in Python that copies incidents to S3 and remembers nothing."""

import gzip
import json
import os
import urllib.request
import uuid

import boto3
import requests

RUNTIME = f"http://{os.environ['AWS_LAMBDA_RUNTIME_API']}/2018-06-01/runtime/invocation"
PAGE = 100

s3 = boto3.client("s3")
session = requests.Session()


def token(tenant_id):
    response = session.post(
        f"{os.environ['ENTRA_AUTHORITY_HOST']}/{tenant_id}/oauth2/v2.0/token",
        data={
            "grant_type": "client_credentials",
            "client_id": os.environ["CLIENT_ID"],
            "client_secret": os.environ["CLIENT_SECRET"],
            "scope": f"{os.environ['AUDIENCE']}/.default",
        },
        timeout=30,
    )
    response.raise_for_status()
    return response.json()["access_token"]


def incidents(tenant_id, since):
    headers = {"authorization": f"Bearer {token(tenant_id)}"}
    skip = 0
    while True:
        response = session.get(
            f"{os.environ['DEFENDER_ENDPOINT']}/api/incidents",
            params={"$filter": f"lastUpdateTime ge {since}", "$top": PAGE, "$skip": skip},
            headers=headers,
            timeout=30,
        )
        response.raise_for_status()
        page = response.json()["value"]
        yield page
        if len(page) < PAGE:
            return
        skip += len(page)


def copy(tenant_id, since):
    count = 0
    for page in incidents(tenant_id, since):
        lines = [
            json.dumps(
                {
                    "schema": "incident/1",
                    "key": f"{tenant_id}/{incident['incidentId']}/{incident['lastUpdateTime']}",
                    "tenant_id": tenant_id,
                    "incident_id": str(incident["incidentId"]),
                    "api": "defender",
                    "last_updated": incident["lastUpdateTime"],
                    "incident": incident,
                }
            )
            for incident in page
        ]
        if lines:
            s3.put_object(
                Bucket=os.environ["INCIDENT_BUCKET"],
                Key=f"incidents/tenant_id={tenant_id}/{uuid.uuid4()}.ndjson.gz",
                Body=gzip.compress(("\n".join(lines) + "\n").encode(), 6),
                ContentType="application/x-ndjson",
                ContentEncoding="gzip",
                IfNoneMatch="*",
            )
        count += len(page)
    return count


def handler(event):
    return {"count": sum(copy(tenant_id, event["since"]) for tenant_id in event["tenants"])}


def main():
    while True:
        with urllib.request.urlopen(f"{RUNTIME}/next") as event:
            request_id = event.headers["lambda-runtime-aws-request-id"]
            response = handler(json.load(event))
        url = f"{RUNTIME}/{request_id}/response"
        urllib.request.urlopen(urllib.request.Request(url, json.dumps(response).encode(), method="POST")).close()


main()
