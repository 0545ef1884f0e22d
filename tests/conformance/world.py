"""What a test holds: a server, one kind of services registered at it, and their ledger."""

import uuid
from dataclasses import dataclass

from tests.conformance.client import Admin, Ingress, Options, Response, wait_until
from tests.conformance.ledger import Ledger
from tests.conformance.server import Server
from tests.conformance.services import Kind


@dataclass(frozen=True, slots=True)
class World:
    server: Server
    kind: Kind
    ledger: Ledger

    @property
    def ingress(self) -> Ingress:
        return self.server.ingress

    @property
    def admin(self) -> Admin:
        return self.server.admin

    def name(self, service: str) -> str:
        """The full name of one of this kind's services."""
        return f"{self.kind.prefix}{service}"

    def call(
        self,
        target: str,
        body: object = None,
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> Response:
        """Call ``Service/handler`` of this kind and wait for the outcome."""
        service, handler = target.split("/")
        options = Options(key=key, idempotency_key=idempotency_key)
        return self.ingress.call(self.name(service), handler, body, options)

    def value(self, target: str, body: object = None, key: str | None = None) -> object:
        """The JSON result of a call that must succeed; ``None`` for an empty one."""
        answer = self.call(target, body, key)
        assert answer.status == 200, answer.body
        return answer.json() if answer.body else None

    def start(
        self,
        target: str,
        body: object = None,
        key: str | None = None,
        idempotency_key: str | None = None,
        delay: str | None = None,
    ) -> str:
        """Send to ``Service/handler``; the id of the invocation."""
        service, handler = target.split("/")
        options = Options(key=key, idempotency_key=idempotency_key, delay=delay)
        answer = self.ingress.send(self.name(service), handler, body, options)
        assert answer.status == 202, answer.body
        return str(answer.json()["invocationId"])

    def await_entry(self, key: str, index: int = 0) -> str:
        """The ledger's ``index``-th entry of ``key``, as soon as there is one."""
        wait_until(lambda: self.ledger.count(key) > index, f"ledger entry {index} of {key!r}")
        return self.ledger.entries(key)[index]

    def result(self, invocation_id: str) -> object:
        """The JSON result of an invocation, waited for."""
        answer = self.ingress.attach(invocation_id)
        assert answer.status == 200, answer.body
        return answer.json() if answer.body else None


def unique(label: str) -> str:
    """A key that no other test uses."""
    return f"{label}-{uuid.uuid4().hex[:12]}"
