"""A bucket of S3, or of a store that speaks its protocol, over boto3: the only module to know it.

Credentials come from where AWS tools look for them (environment, profile, container or instance
role). Conditional writes are tried once: a retry behind our back could meet its own first try and
call it somebody else's.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeVar, cast

from perdure.core.errors import ObjectStoreRefused, ObjectStoreUnavailable
from perdure.core.invariant import invariant
from perdure.core.limits_snapshots import (
    OBJECT_CONNECT_TIMEOUT_MS,
    OBJECT_PART_BYTES,
    OBJECT_READ_TIMEOUT_MS,
    OBJECT_WHOLE_BYTES_MAX,
    SNAPSHOT_TRANSFERS_MAX,
)
from perdure.storage.object_store import (
    Absent,
    Condition,
    ConditionFailed,
    Contended,
    ListedObject,
    Match,
    StoredObject,
)

_NO_LIBRARY = "snapshots in S3 need the package boto3: pip install 'perdure[s3]'"
_ATTEMPTS_MAX = 4
_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
_BUSY = frozenset({"SlowDown", "Throttling", "RequestTimeout", "RequestTimeTooSkewed"})
_UNCONFIGURED = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "NoRegionError",
    "ProfileNotFound",
)


T = TypeVar("T")


class _Missing(ConditionFailed):
    """There is no such object; so it doesn't match either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Options:
    """Where the bucket is. None: as the environment says. ``prefix``: no slash at its ends."""

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    is_path_style: bool = False


class S3Store:
    """Objects below a prefix of a bucket."""

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._prefix = f"{options.prefix}/" if options.prefix else ""
        self._lock = threading.Lock()
        self._clients: dict[int, Any] = {}

    def get(self, key: str) -> StoredObject | None:
        def get(client: Any) -> StoredObject:
            answer = client.get_object(Bucket=self._options.bucket, Key=self._prefix + key)
            return StoredObject(answer["Body"].read(), answer["ETag"])

        return self._find(get)

    def put(self, key: str, content: bytes, condition: Condition | None = None) -> str:
        target = {"Bucket": self._options.bucket, "Key": self._prefix + key}
        conditions: dict[str, str] = {}
        if isinstance(condition, Absent):
            conditions = {"IfNoneMatch": "*"}
        elif condition is not None:
            conditions = {"IfMatch": condition.etag}
        if len(content) > OBJECT_WHOLE_BYTES_MAX:
            # Stores agree less on conditions of uploads in parts; nothing of ours needs this one.
            invariant(not isinstance(condition, Match), "large objects are written once", key=key)
            return self._put_in_parts(target, content, conditions)

        def put(client: Any) -> str:
            etag: str = client.put_object(**target, Body=content, **conditions)["ETag"]
            return etag

        return self._call(put, 1 if conditions else _ATTEMPTS_MAX)

    def delete(self, key: str) -> None:
        def delete(client: Any) -> None:
            client.delete_object(Bucket=self._options.bucket, Key=self._prefix + key)

        self._find(delete)

    def list(self, prefix: str) -> Iterator[ListedObject]:
        token: dict[str, str] = {}
        while True:
            page = self._call(partial(self._list_page, self._prefix + prefix, token))
            for item in page.get("Contents", []):
                yield ListedObject(
                    item["Key"][len(self._prefix) :],
                    item["Size"],
                    int(item["LastModified"].timestamp() * 1000),
                )
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _list_page(self, prefix: str, token: dict[str, str], client: Any) -> dict[str, Any]:
        page: dict[str, Any] = client.list_objects_v2(
            Bucket=self._options.bucket, Prefix=prefix, **token
        )
        return page

    def _put_in_parts(
        self, target: dict[str, str], content: bytes, conditions: dict[str, str]
    ) -> str:
        def create(client: Any) -> str:
            upload: str = client.create_multipart_upload(**target)["UploadId"]
            return upload

        upload = self._call(create)
        try:
            parts: list[dict[str, Any]] = []
            for number, start in enumerate(range(0, len(content), OBJECT_PART_BYTES), 1):
                part = content[start : start + OBJECT_PART_BYTES]
                etag = self._call(partial(_put_part, target, upload, number, part))
                parts.append({"PartNumber": number, "ETag": etag})

            def complete(client: Any) -> str:
                etag: str = client.complete_multipart_upload(
                    **target, UploadId=upload, MultipartUpload={"Parts": parts}, **conditions
                )["ETag"]
                return etag

            return self._call(complete, 1)
        except (ConditionFailed, Contended, ObjectStoreRefused):
            self._find(lambda client: client.abort_multipart_upload(**target, UploadId=upload))
            raise

    # --- Calling --------------------------------------------------------------------------------

    def _find(self, operation: Callable[[Any], T]) -> T | None:
        try:
            return self._call(operation)
        except _Missing:
            return None

    def _call(self, operation: Callable[[Any], T], attempts: int = _ATTEMPTS_MAX) -> T:
        try:
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise ObjectStoreRefused(_NO_LIBRARY) from error
        try:
            return operation(self._client(attempts))
        except ClientError as error:
            self._raise_refused(error, cast(dict[str, Any], error.response))
        except BotoCoreError as error:
            if type(error).__name__ in _UNCONFIGURED:
                raise ObjectStoreRefused(f"{error}: see docs/operations.md, Snapshots") from error
            raise self._unavailable(error) from error
        except OSError as error:
            raise self._unavailable(error) from error

    def _raise_refused(self, error: Exception, response: dict[str, Any]) -> NoReturn:
        code = str(response.get("Error", {}).get("Code", ""))
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in _MISSING:
            raise _Missing(str(error)) from error
        if status == 412 or code == "PreconditionFailed":
            raise ConditionFailed(str(error)) from error
        if status == 409:
            raise Contended(str(error)) from error
        if status >= 500 or status == 429 or code in _BUSY:
            raise self._unavailable(error) from error
        raise ObjectStoreRefused(
            f"the bucket {self._options.bucket} can't be used: {error}. Check its name, region and "
            "the credentials"
        ) from error

    def _unavailable(self, error: Exception) -> ObjectStoreUnavailable:
        return ObjectStoreUnavailable(
            f"the bucket {self._options.bucket} doesn't answer as it should: {error}"
        )

    def _client(self, attempts: int) -> Any:
        with self._lock:  # sessions, unlike clients, are not safe to share
            client = self._clients.get(attempts)
            if client is None:
                client = self._clients[attempts] = self._make_client(attempts)
        return client

    def _make_client(self, attempts: int) -> Any:
        try:
            from boto3.session import Session  # type: ignore[import-untyped]
            from botocore.config import Config
        except ImportError as error:
            raise ObjectStoreRefused(_NO_LIBRARY) from error
        options = self._options
        # Many stores know no checksums but MD5 of parts; ours are in the manifests.
        config = Config(
            connect_timeout=OBJECT_CONNECT_TIMEOUT_MS / 1000,
            read_timeout=OBJECT_READ_TIMEOUT_MS / 1000,
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=SNAPSHOT_TRANSFERS_MAX + 2,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if options.is_path_style else "auto"},
        )
        session: Any = Session(profile_name=options.profile, region_name=options.region)
        return session.client("s3", endpoint_url=options.endpoint_url, config=config)


def _put_part(target: dict[str, str], upload: str, number: int, part: bytes, client: Any) -> str:
    etag: str = client.upload_part(**target, UploadId=upload, PartNumber=number, Body=part)["ETag"]
    return etag
