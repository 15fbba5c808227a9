"""A server in small that speaks what MLflow's client asks of a tracking server, over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class MlflowStub:
    """Keeps runs in memory; `manner` says how it answers: ok, refuse, hang."""

    def __init__(self) -> None:
        self.manner = "ok"
        self.runs: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def die(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        name = path.partition("/mlflow/")[2]
        self.asked.append(name)
        match name:
            case "experiments/search":
                return {}
            case "experiments/get-by-name":
                return {"experiment": {"experiment_id": "7", "name": asked["experiment_name"]}}
            case "runs/search":
                found = [
                    {"info": run["info"], "data": {"tags": run["tags"]}}
                    for run in self.runs.values()
                    if any(tag["value"] in asked["filter"] for tag in run["tags"])
                ]
                return {"runs": found}
            case "runs/create":
                key = f"{len(self.runs):032x}"
                info = {"run_id": key, "run_uuid": key, "experiment_id": "7", "status": "RUNNING"}
                info |= {"run_name": asked["run_name"], "lifecycle_stage": "active"}
                tags = asked["tags"]
                self.runs[key] = {"info": info, "tags": tags, "metrics": [], "params": []}
                return {"run": {"info": info, "data": {"tags": tags}}}
            case "runs/log-batch":
                for part in ("metrics", "params", "tags"):
                    self.runs[asked["run_id"]][part] += asked.get(part, [])
                return {}
            case "runs/update":
                run = self.runs[asked["run_id"]]
                run["info"]["status"] = asked.get("status", run["info"]["status"])
                return {"run_info": run["info"]}
            case "runs/get":
                return {"run": {"info": self.runs[asked["run_id"]]["info"], "data": {}}}
            case "metrics/get-history":
                metrics = self.runs[asked["run_id"]]["metrics"]
                return {"metrics": [each for each in metrics if each["key"] == asked["metric_key"]]}
        raise LookupError(path)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                stub.bodies.append(body)
                self._answer(json.loads(body))

            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                self._answer({name: values[0] for name, values in query.items()})

            def _answer(self, asked: dict[str, Any]) -> None:
                if stub.manner == "hang":
                    time.sleep(30)
                refused = stub.manner != "ok"
                said = {} if refused else stub.answer(urlsplit(self.path).path, asked)
                self.send_response(500 if refused else 200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(said).encode())

            def log_message(self, *_: Any) -> None: ...

        return Handler
