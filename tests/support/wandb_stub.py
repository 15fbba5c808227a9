"""A small W&B server on the loopback interface: what the client sends is kept and can be asked for.

It speaks the part of the protocol that runs, sweeps and saved views need: GraphQL (Viewer,
RunResumeStatus, UpsertBucket, CreateRunFiles, UpsertSweep, SweepWithRuns, UpsertView2,
NotifyScriptableRunAlert), `POST /files/.../file_stream`, and `PUT` of files. It can also misbehave.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

import yaml

Manner = Literal["ok", "refuse", "forbid", "bad_key", "hang"]

_OPERATION = re.compile(r"(?:query|mutation)\s+(\w+)")
_STREAM = re.compile(r"^/files/([^/]+)/([^/]+)/([^/]+)/file_stream$")
ENTITY = "stub-team"


@dataclass(kw_only=True)
class StubRun:
    """A run as the server knows it after everything it was sent."""

    upserts: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)  # by line number
    overwritten: list[int] = field(default_factory=list)  # lines that were sent twice
    summary: dict[str, Any] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)

    def said(self, name: str) -> Any:
        """The last value that was given for a field of UpsertBucket, such as displayName."""
        return next((u[name] for u in reversed(self.upserts) if u.get(name) is not None), None)

    def rows(self) -> list[dict[str, Any]]:
        return [self.history[line] for line in sorted(self.history)]


@dataclass(kw_only=True)
class StubSweep:
    """A sweep object as the server knows it."""

    config: dict[str, Any]
    project: str
    prior_runs: list[str]
    state: str = "RUNNING"


class WandbStub:
    """`with WandbStub() as server:` serves at `server.url`; `server.runs` holds runs by id."""

    def __init__(self, manner: Manner = "ok") -> None:
        self.manner: Manner = manner
        self.manners: dict[str, Manner] = {}  # of single operations
        self.runs: dict[str, StubRun] = {}
        self.sweeps: dict[str, StubSweep] = {}
        self.stopped: set[str] = set()  # ids of runs whose stop button was pressed
        self.views: dict[str, dict[str, Any]] = {}  # saved views, as they were upserted
        self.alerts: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}  # by path, as they were PUT
        self.requests: list[tuple[str, str]] = []  # path, operation
        self.bodies: list[bytes] = []
        self.lock = threading.Lock()
        self._released = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.stub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> WandbStub:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.die()

    def die(self) -> None:
        """Stop listening and let go of every request that hangs; a second call does nothing."""
        self._released.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def turn(self, manner: str) -> None:
        """From now on refuse, hang, or be dead."""
        if manner == "dies":
            self.die()
        else:
            self.manner = "hang" if manner.startswith("hang") else "refuse"

    def wait_released(self) -> None:
        self._released.wait()

    def operations(self) -> list[str]:
        with self.lock:
            return [operation for _, operation in self.requests]

    def graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        answer = getattr(self, f"_{operation.lower()}", None)
        return {} if answer is None else answer(variables)

    def file_stream(self, run_id: str, body: dict[str, Any]) -> None:
        run = self.runs.setdefault(run_id, StubRun())
        files = body.get("files") or {}
        chunk = files.get("wandb-history.jsonl")
        if chunk:
            for line, text in enumerate(chunk["content"], start=chunk["offset"]):
                if line in run.history:
                    run.overwritten.append(line)
                run.history[line] = json.loads(text)
        if "wandb-summary.json" in files:
            run.summary.update(json.loads(files["wandb-summary.json"]["content"][-1]))
        if body.get("complete"):
            run.exit_codes.append(body["exitcode"])

    def _viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        if self.manner == "bad_key":
            return {"viewer": None}
        return {
            "viewer": {
                "id": "VXNlcjox",
                "entity": ENTITY,
                "username": ENTITY,
                "email": "stub@example.invalid",
                "flags": "{}",
                "teams": {"edges": []},
            }
        }

    def _upsertbucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        run_id = variables["name"]
        inserted = run_id not in self.runs
        run = self.runs.setdefault(run_id, StubRun())
        run.upserts.append(variables)
        if variables.get("config"):
            config = json.loads(variables["config"])
            run.config.update({name: item["value"] for name, item in config.items()})
        bucket = {
            "id": f"stub-{run_id}",
            "name": run_id,
            "displayName": run.said("displayName") or run_id,
            "description": None,
            "config": None,
            "sweepName": None,
            "project": {
                "id": "stub-project",
                "name": variables.get("project") or "uncategorized",
                "entity": {"id": "stub-entity", "name": ENTITY},
            },
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _runresumestatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        if run is None:
            return {"model": None}
        bucket = {
            "id": f"stub-{variables['name']}",
            "name": variables["name"],
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.said("displayName"),
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.rows()[-1:]]),
            "eventsTail": "[]",
            "config": json.dumps({k: {"value": v} for k, v in run.config.items()}),
            "tags": run.said("tags") or [],
            "notes": None,
            "wandbConfig": json.dumps({"t": {"1": []}}),  # without it a run counts as unknown
        }
        model = {"id": "m", "name": "p", "entity": {"id": "e", "name": ENTITY}, "bucket": bucket}
        return {"model": model}

    def _upsertsweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = (variables.get("id") or f"stub-sweep{len(self.sweeps)}").removeprefix("stub-")
        if variables.get("config"):
            filters = json.loads(variables["priorRunsFilters"] or '{"$or": []}')
            self.sweeps[name] = StubSweep(
                config=yaml.safe_load(variables["config"]),
                project=f"{variables['entityName']}/{variables['projectName']}",
                prior_runs=[each["name"] for each in filters["$or"]],
            )
        self.sweeps[name].state = variables.get("state") or self.sweeps[name].state
        entity = {"id": "stub-entity", "name": ENTITY}
        project = {"id": "stub-project", "name": variables["projectName"], "entity": entity}
        sweep = {"name": name, "project": project}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def _sweepwithruns(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["sweep"]
        sweep = {"id": f"stub-{name}", "name": name, "state": self.sweeps[name].state}
        sweep |= {"config": json.dumps(self.sweeps[name].config), "runs": {"edges": []}}
        return {"project": {"sweep": sweep}}

    def _upsertview2(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.views[variables["name"]] = variables
        view = {"id": f"stub-{variables['name']}", "name": variables["name"]}
        return {"upsertView": {"view": view, "inserted": "id" not in variables}}

    def _notifyscriptablerunalert(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append(variables)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _artifacttype(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"project": None}

    def _createartifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _createrunfiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{variables['run']}/{name}"}
            for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    stub: WandbStub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        stub = self.server.stub
        raw = self._body()
        body = json.loads(raw) if raw else {}
        found = _OPERATION.search(body.get("query", ""))
        operation = found[1] if found else ""
        with stub.lock:
            stub.requests.append((self.path, operation))
            stub.bodies.append(raw)
        if self._misbehaves(stub.manners.get(operation, stub.manner)):
            return
        with stub.lock:
            if stream := _STREAM.match(self.path):
                stub.file_stream(stream[3], body)
                answer: dict[str, Any] = {"stopped": stream[3] in stub.stopped}
            else:
                answer = {"data": stub.graphql(operation, body.get("variables") or {})}
        self._answer(200, answer)

    def do_PUT(self) -> None:
        raw = self._body()
        with self.server.stub.lock:
            self.server.stub.files[self.path] = raw
        self._answer(200, {})

    def do_GET(self) -> None:
        self._answer(404, {})

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _misbehaves(self, manner: Manner) -> bool:
        if manner == "hang":
            self.server.stub.wait_released()
            self.close_connection = True
            return True
        if manner == "refuse":
            self._answer(500, {"error": "no"})
        elif manner == "forbid":
            self._answer(403, {"errors": [{"message": "permission denied"}]})
        else:
            return False
        return True

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
