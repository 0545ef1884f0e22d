"""Settings of a node among others: who they are, and where the cluster's metadata is. Pure."""

# Defaults are made by ``_setting``, which is ``dataclasses.field`` with the rest of the row.
# ruff: noqa: RUF009

from dataclasses import dataclass
from pathlib import Path

from perdure.node.config.field import setting as _setting
from perdure.node.config.kinds import (
    ADDRESS,
    BOOLEAN,
    DESTINATION,
    ENDPOINTS,
    MEMBERS,
    NAME,
    PATH,
    TEXT,
    count,
    optional,
)
from perdure.node.config.values import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Several nodes that are one: each record of the log on some of them, the metadata on the first
    ones, or in an etcd. Without members and without etcd a node is all there is."""

    members: tuple[tuple[str, str], ...] = _setting(
        (),
        MEMBERS,
        "The first nodes, an odd number, by name, with the addresses where the others reach them "
        "(`cluster.bind-address` as seen from outside); the same list on every node. At first they "
        "hold the metadata, at the port after the one named here.",
    )
    bind_address: Address = _setting(
        Address("127.0.0.1", 5123), ADDRESS, "Where the other nodes connect to."
    )
    advertised_address: str | None = _setting(
        None,
        optional(TEXT, "auto"),
        "How the other nodes reach this one, as `host:port`. `auto`: what `members` says, or else "
        "the bind address.",
    )
    secret_file: Path | None = _setting(
        None,
        optional(PATH, "none"),
        "File with a secret that all nodes know, of 16 bytes or more, which keeps others out. It "
        "encrypts nothing.",
    )
    tls_certificate_file: Path | None = _setting(
        None, optional(PATH, "none"), "PEM file with this node's certificate chain."
    )
    tls_key_file: Path | None = _setting(
        None, optional(PATH, "none"), "PEM file with the certificate's private key."
    )
    tls_authority_file: Path | None = _setting(
        None, optional(PATH, "none"), "PEM file with the authority that signs all certificates."
    )
    insecure: bool = _setting(
        False,
        BOOLEAN,
        "Listen for other nodes beyond this machine with neither secret nor certificates.",
    )
    replication: int = _setting(
        2, count(1, 5), "Nodes that must have a record. Read when the cluster is made."
    )
    partition_replicas: int = _setting(
        3, count(1, 7), "Nodes that hold a partition's tables. Read when the cluster is made."
    )
    zone: str | None = _setting(
        None, optional(NAME, "none"), "Where the node is: copies are spread over zones."
    )
    restore_from: str | None = _setting(
        None,
        optional(DESTINATION, "none"),
        "Make the cluster out of the snapshots that are there: `s3://bucket/prefix` or "
        "`file:///directory`, reached as `snapshots` says; the same on every node. Read when the "
        "cluster is made, which is a new one with the old state: `snapshots.destination` must be "
        "another place.",
    )
    restore_set: str | None = _setting(
        None, optional(NAME, "newest"), "The set of snapshots that it is made of."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """An etcd cluster of your own that holds the metadata, in place of the nodes. The same on every
    node; `cluster.members` stays empty then, and nodes join as they come."""

    endpoints: tuple[str, ...] = _setting(
        (), ENDPOINTS, "Where etcd (3.4 or later) serves clients. `none`: there is no etcd."
    )
    prefix: str | None = _setting(
        None,
        optional(TEXT, "auto"),
        "What all keys begin with. `auto`: `perdure/`, the cluster's name and `/`. Two clusters "
        "must not share one.",
    )
    user: str | None = _setting(
        None,
        optional(TEXT, "none"),
        "Who logs in, if etcd asks for it; it needs the rights to read and write below the prefix.",
    )
    password_file: Path | None = _setting(
        None, optional(PATH, "none"), "File with the user's password."
    )
    tls_authority_file: Path | None = _setting(
        None,
        optional(PATH, "none"),
        "PEM file with the authority that signs the endpoints' certificates. `none`: connections "
        "to etcd are not encrypted.",
    )
    tls_certificate_file: Path | None = _setting(
        None, optional(PATH, "none"), "PEM file with a client certificate, if etcd asks for one."
    )
    tls_key_file: Path | None = _setting(
        None, optional(PATH, "none"), "PEM file with that certificate's private key."
    )
