"""An S3 server on loopback."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

BUCKET = "gpt2core"
KEY, SECRET = "AKIDEXAMPLE", "s3cr3t/of+the=test"


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """The address of a server with an empty bucket."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        key = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=address, **key).create_bucket(Bucket=BUCKET)
        yield address
    finally:
        server.stop()


@pytest.fixture
def s3(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a folder for this test alone, with the environment that opens it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
