"""Credentials: what a store's client is told besides what it reads from the environment by itself.

obstore reads AWS_*, GOOGLE_* and AZURE_* variables, a container's role and a machine's, but no profile:
https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html
"""

from __future__ import annotations

import argparse
import configparser
import os
from pathlib import Path

from schemas import RequestError

_KEYS = {"aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key", "aws_session_token": "session_token"}
_ELSEWHERE = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def config(url: str) -> dict[str, str]:
    """Options for the client of this place. Raises RequestError where $AWS_PROFILE names a profile that is not there, or has no keys."""
    if not url.startswith("s3://"):
        return {}
    profile = _profile()
    endpoint = _first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") or profile.get("endpoint_url", "")
    found = {"region": _first("AWS_REGION", "AWS_DEFAULT_REGION") or profile.get("region", "us-east-1")}
    if endpoint:
        found["endpoint"] = endpoint
    if not _first(*_ELSEWHERE):
        found |= {option: profile[key] for key, option in _KEYS.items() if key in profile}
    return found


def _first(*variables: str) -> str:
    return next((os.environ[name] for name in variables if os.environ.get(name)), "")


def _profile() -> dict[str, str]:
    """What the files say of $AWS_PROFILE, or of `default`; the credentials file goes before the config file."""
    name = os.environ.get("AWS_PROFILE") or "default"
    credentials = _section("AWS_SHARED_CREDENTIALS_FILE", "credentials", name)
    settings = _section("AWS_CONFIG_FILE", "config", name if name == "default" else f"profile {name}")
    if os.environ.get("AWS_PROFILE") and not _first(*_ELSEWHERE) and "aws_access_key_id" not in {**settings, **credentials}:
        raise RequestError(f"AWS_PROFILE {name}: expected its aws_access_key_id in ~/.aws/credentials or ~/.aws/config, found none")
    return {**settings, **credentials}


def _section(variable: str, file: str, name: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    path = Path(os.environ.get(variable) or Path.home() / ".aws" / file)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:  # whose text would repeat the line
        raise RequestError(f"{path}: expected a file of profiles, found {type(error).__name__}") from None
    return dict(parser[name]) if parser.has_section(name) else {}


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """The option --endpoint, of every command that takes a PLACE; `command.run` makes it count."""
    parser.add_argument("--endpoint", metavar="URL", help="of an S3 service other than Amazon's (default: $AWS_ENDPOINT_URL)")


def use_endpoint(endpoint: str | None) -> None:
    """Make an endpoint count in this process, and in those that it starts. Raises RequestError where it is none."""
    if endpoint is None:
        return
    if not endpoint.startswith(("http://", "https://")) or "@" in endpoint:
        raise RequestError("--endpoint: expected http://HOST:PORT or https://HOST:PORT, without credentials, found something else")
    os.environ["AWS_ENDPOINT_URL"] = endpoint.rstrip("/")
    os.environ.pop("AWS_ENDPOINT_URL_S3", None)
