"""Where W&B's runs go: whether there is a key, and a server that takes it."""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.tracking.wandb_process import set_up
from sweeps.config.spec import TrackingSpec
from sweeps.core.secrets import scrub

PROBE_S = 3.0
_QUERY = "query Viewer { viewer { id entity username } }"
_MOST_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Link:
    """Whether the server can be used.

    Attributes:
        online: it answered and took the key.
        why: not online, because; ends a sentence.
        page: the project in the browser, where it is known.
        trouble: asks the server once more, in `PROBE_S`; what is wrong with it now, or nothing.
    """

    online: bool
    why: str = ""
    page: str = ""
    trouble: Callable[[], str] = field(default=lambda: "", repr=False)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server said: `problem` is empty where runs may be sent to it."""

    problem: str = ""
    entity: str = ""  # the account's default one


def is_off(tracking: TrackingSpec) -> bool:
    """Whether nothing shall be tracked; imports nothing."""
    return _mode(tracking) in ("off", "disabled")


def find_link(tracking: TrackingSpec) -> Link:
    """Look for a key the way wandb does, but without its prompt, and ask the server once.

    Takes `PROBE_S` at most, besides the import of wandb.
    """
    session = set_up()
    if _mode(tracking) == "offline":
        return Link(online=False, why="as configured")
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib import wbauth

    base_url, app_url = session.settings.base_url, session.settings.app_url
    try:
        host = wbauth.HostUrl(base_url, app_url=app_url)
        found = wbauth.authenticate_session(host=host, source="sweep", prompt=False)
    except (AuthenticationError, ValueError) as error:
        return Link(online=False, why=scrub(str(error)).rstrip("."))
    if found is None:
        return Link(online=False, why="no API key: `wandb login` stores one")
    key = found.api_key if isinstance(found, wbauth.AuthApiKey) else None
    answer = probe(base_url, key, PROBE_S)
    if answer.problem:
        return Link(online=False, why=scrub(answer.problem))
    entity = tracking.entity or session.settings.entity or answer.entity
    page = f"{app_url}/{entity}/{tracking.project}" if entity else app_url
    return Link(
        online=True, page=scrub(page), trouble=lambda: scrub(probe(base_url, key, PROBE_S).problem)
    )


def _mode(tracking: TrackingSpec) -> str:
    """The configured mode; wandb's own variable decides where that is auto."""
    if tracking.mode != "auto":
        return tracking.mode
    mode = os.environ.get("WANDB_MODE", "").lower()
    return {"dryrun": "offline"}.get(mode, mode)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def probe(base_url: str, key: str | None, timeout_s: float) -> Answer:
    """Ask the server who we are; takes `timeout_s` at most, name resolution included.

    Args:
        key: None where wandb logs in by other means; then any answer is a good one.
    """
    answers: list[Answer] = []
    asking = threading.Thread(
        target=lambda: answers.append(_ask(base_url, key, timeout_s)), daemon=True
    )
    asking.start()
    asking.join(timeout_s)
    return answers[0] if answers else _silent(base_url, timeout_s)


def _silent(base_url: str, timeout_s: float) -> Answer:
    return Answer(problem=f"{base_url} does not answer within {timeout_s:g} s")


def _ask(base_url: str, key: str | None, timeout_s: float) -> Answer:
    request = urllib.request.Request(
        f"{base_url}/graphql",
        data=json.dumps({"query": _QUERY}).encode(),
        headers={"Content-Type": "application/json"},
    )
    if key is not None:
        login = base64.b64encode(f"api:{key}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {login}")
    try:
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=timeout_s) as response:
            return _read(base_url, json.loads(response.read(_MOST_BYTES)), key)
    except urllib.error.HTTPError as error:
        return _refused(base_url, error.code)
    except TimeoutError:
        return _silent(base_url, timeout_s)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return _unreachable(base_url, error)


def _read(base_url: str, body: Any, key: str | None) -> Answer:
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, dict):
        return Answer(problem=f"{base_url} does not answer like a W&B server")
    viewer = data.get("viewer")
    if key is not None and not viewer:
        return Answer(problem=f"{base_url} does not know the API key")
    return Answer(entity=str((viewer or {}).get("entity") or ""))


def _refused(base_url: str, status: int) -> Answer:
    if 300 <= status < 400:
        return Answer()  # wandb may follow it
    if status in (401, 403):
        return Answer(problem=f"{base_url} refuses the API key (HTTP {status})")
    return Answer(problem=f"{base_url} answers HTTP {status}")


def _unreachable(base_url: str, error: Exception) -> Answer:
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLError):
        return Answer()  # wandb-core trusts other certificates than Python; let it decide
    if isinstance(reason, TimeoutError):
        return Answer(problem=f"{base_url} does not answer in time")
    if isinstance(error, ValueError):
        return Answer(problem=f"{base_url} does not answer like a W&B server")
    return Answer(problem=f"{base_url} cannot be reached: {reason}")
