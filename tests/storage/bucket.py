"""S3 as moto's server speaks it, over a real socket: a bucket of its own for each who asks."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from typing import Any

from botocore.session import Session
from moto.server import ThreadedMotoServer

from perdure.storage.s3_store import S3Options

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What the environment must hold while the bucket is used."""

_numbers = count(1)


@contextmanager
def moto_server() -> Generator[str]:
    """A server; where it is."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def make_bucket(endpoint_url: str) -> S3Options:
    """A new bucket on a server."""
    name = f"snapshots-{next(_numbers)}"
    client: Any = Session().create_client(
        "s3",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket=name)
    client.close()
    return S3Options(
        bucket=name, prefix="some/prefix", endpoint_url=endpoint_url, is_path_style=True
    )
