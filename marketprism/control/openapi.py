"""What 8087 offers, as OpenAPI 3.1, for people and for programs that make clients."""

from __future__ import annotations

from typing import Any

from marketprism import __version__
from marketprism.control.plane import Verb
from marketprism.control.processes import RunState
from marketprism.control.restarts import REASONS

Json = dict[str, Any]

_STATUS = {"type": "string", "enum": ["healthy", "degraded", "unhealthy"]}
_NUMBER = {"type": "number"}
_COUNT = {"type": "integer"}
_COUNTS = {"type": "object", "additionalProperties": _COUNT}
_SERVICES = {
    "type": "object",
    "description": "What it stands on: nats, websocket, orderbook_manager.",
    "additionalProperties": {"type": "object", "properties": {"status": {"type": "string"}, "count": _COUNT}},
}
_LAST_EXIT = {
    "type": ["object", "null"],
    "description": "How it ended last; `code` is negative for a signal, `at` is Unix time.",
    "properties": {
        "reason": {"type": "string", "enum": [*REASONS, "config"]},
        "code": {"type": ["integer", "null"]},
        "at": _COUNT,
        "after_seconds": _COUNT,
        "words": {"type": "string"},
    },
}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_NAME = {
    "name": "process",
    "in": "path",
    "required": True,
    "description": "Name of a worker, such as okx_spot, or of a store: hot, cold.",
    "schema": {"type": "string"},
}

_REQUIRED = ["status", "cpu_percent", "memory_mb", "uptime_seconds", "reasons", "explanations"]
_STORE: Json = {
    "type": "object",
    "description": "The hot store or the cold one, as a process; what it holds it tells on a port of its own.",
    "properties": {
        "status": _STATUS,
        "cpu_percent": _NUMBER,
        "memory_mb": _NUMBER,
        "uptime_seconds": _COUNT,
        "reasons": _TEXTS | {"description": "What is missing, by fixed names."},
        "explanations": _TEXTS | {"description": "The same in words."},
        "state": {"type": "string", "enum": [state.value for state in RunState]},
        "says": {"type": "string", "description": "Its own line for systemd."},
        "pid": {"type": ["integer", "null"]},
        "restarts": _COUNT,
        "last_exit": _LAST_EXIT,
        "memory_soft_mb": {"type": ["integer", "null"]},
        "memory_hard_mb": {"type": ["integer", "null"]},
    },
    "required": _REQUIRED,
}
_PROCESS = {
    "type": "object",
    "description": "One worker. An unknown figure is null.",
    "properties": {
        **_STORE["properties"],
        "services": _SERVICES,
        "timestamp": {"type": ["number", "null"], "description": "Unix time of its newest figures."},
        "process": {
            "type": "string",
            "description": "The process that runs it; differs in single-process mode.",
        },
        "live_books": _COUNT,
        "expected_books": _COUNT,
        "websockets": _COUNT,
        "expected_websockets": _COUNT,
        "missing_channels": _COUNT
        | {"description": "Channels that the exchange has not subscribed, though asked."},
        "gaps": _COUNT,
        "gaps_last_hour": _COUNT,
        "audits": _COUNTS | {"description": "Live books checked, by result."},
        "messages_per_second": _NUMBER | {"description": "Websocket frames received."},
        "data_age_s": {
            "type": "object",
            "description": "Seconds since a data type was last published.",
            "additionalProperties": _NUMBER,
        },
        "heartbeat_age_s": {"type": ["number", "null"], "description": "Seconds since its loop last turned."},
    },
    "required": _REQUIRED,
}

_HEALTH = {
    "type": "object",
    "properties": {
        "status": _STATUS,
        "uptime_seconds": _COUNT,
        "mode": {"type": "string", "enum": ["multiprocess", "single"]},
        "processes": {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Process"}},
        "services": _SERVICES,
        "stores": {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Store"}},
        "reasons": _TEXTS | {"description": "Why it is not healthy, in words."},
        "timestamp": _NUMBER | {"description": "Unix time of this answer."},
        "summary": {
            "type": "object",
            "description": "Totals over all processes.",
            "additionalProperties": _NUMBER,
        },
        "version": {"type": "string"},
    },
    "required": ["status", "uptime_seconds", "mode", "processes", "services"],
}


def document() -> Json:
    """The OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MarketPrism collector",
            "version": __version__,
            "description": "How the collector is, and orders to its workers. Metrics are on port 9092.",
        },
        "paths": {
            "/health": _get("All workers judged", "Health", unhealthy="something is unhealthy"),
            "/health/{process}": _get("One worker judged", "Process", "the worker is unhealthy", [_NAME]),
            "/ready": _get("Have all workers begun?", unhealthy="not all of them have"),
            "/live": _get("Does the control plane answer?"),
            "/version": _get("The collector's version"),
            "/openapi.json": _get("This document"),
            **{f"/workers/{{process}}/{verb}": _order(verb) for verb in Verb},
        },
        "components": {
            "schemas": {"Health": _HEALTH, "Process": _PROCESS, "Store": _STORE},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _get(
    summary: str, schema: str = "", unhealthy: str = "", parameters: list[Json] | None = None
) -> dict[str, Json]:
    shape = {"$ref": f"#/components/schemas/{schema}"} if schema else {"type": "object"}
    content = {"application/json": {"schema": shape}}
    responses: Json = {"200": {"description": "the answer", "content": content}}
    if unhealthy:
        responses["503"] = {"description": f"the same, and {unhealthy}", "content": content}
    if parameters:
        responses["404"] = {"description": "there is no such worker"}
    return {"get": {"summary": summary, "parameters": parameters or [], "responses": responses}}


def _order(verb: Verb) -> dict[str, Json]:
    return {
        "post": {
            "summary": f"{verb.value.capitalize()} a worker",
            "security": [{"token": []}],
            "parameters": [_NAME],
            "responses": {
                "202": {"description": "ordered; /health/{process} tells what comes of it"},
                "401": {"description": "no token, or a wrong one"},
                "403": {"description": "orders are off: no token is configured"},
                "404": {"description": "there is no such worker"},
                "409": {"description": "it cannot be done; `error` says why"},
            },
        }
    }
