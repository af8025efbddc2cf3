"""The S3 service that readers are sent to, by AWS_* variables."""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
from typing import Any


def options() -> dict[str, str]:
    """endpoint, key, secret."""
    return {
        "endpoint": os.environ["AWS_ENDPOINT_URL"],
        "key": os.environ["AWS_ACCESS_KEY_ID"],
        "secret": os.environ["AWS_SECRET_ACCESS_KEY"],
    }


def names(place: str, suffix: str) -> list[str]:
    """Of the objects below a prefix, sorted."""
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    found = _client().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]
    return sorted(item["Key"].removeprefix(f"{prefix}/") for item in found if item["Key"].endswith(suffix))


def presigned(place: str, suffix: str) -> list[str]:
    """URLs that need no credentials."""
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    client = _client()
    return [
        client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": f"{prefix}/{name}"}, ExpiresIn=3600)
        for name in names(place, suffix)
    ]


def _client() -> Any:
    import boto3

    found = options()
    return boto3.client(
        "s3", endpoint_url=found["endpoint"], aws_access_key_id=found["key"], aws_secret_access_key=found["secret"], region_name="us-east-1"
    )
