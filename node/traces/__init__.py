"""Traces: what invocations did, as spans that OpenTelemetry tools show."""
