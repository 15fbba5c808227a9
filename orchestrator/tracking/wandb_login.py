"""Finds out where W&B's runs go: whether there is a key, and a server that takes it.

`wandb.Api(timeout=3).viewer` would not do: it asks a server that answers HTTP 500 or cannot be
reached again and again until its time is up, and says of both that a process is busy.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from orchestrator.tracking.tracker import mode_of
from orchestrator.tracking.wandb_process import set_up
from sweeps.config.spec import TrackingSpec
from sweeps.core.secrets import scrub

_QUERY = "query Viewer { viewer { id entity username } }"
_MOST_BYTES = 1_000_000


class UnusableError(Exception):
    """Why no runs can be sent to the server; without secrets."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """Whether the server can be used.

    Attributes:
        why: it is not online, because; ends a sentence.
        page: the project in the browser, if online.
        check: asks the server once more; raises UnusableError.
    """

    why: str = ""
    page: str = ""
    check: Callable[[], object] = field(default=lambda: None, repr=False)

    @property
    def online(self) -> bool:
        """Whether the server answered and took the key."""
        return not self.why

    @property
    def line(self) -> str:
        return f"W&B: online, {self.page}" if self.online else f"W&B: offline ({self.why})"


def find_link(tracking: TrackingSpec, probe_s: float) -> Link:
    """Look for a key as wandb does, but without its prompt, and ask the server once.

    Takes `probe_s` seconds at most, besides the import of wandb.
    """
    session = set_up()
    if mode_of(tracking) == "offline":
        return Link(why="as configured")
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib import wbauth

    base_url, app_url = session.settings.base_url, session.settings.app_url
    try:
        host = wbauth.HostUrl(base_url, app_url=app_url)
        found = wbauth.authenticate_session(host=host, source="sweep", prompt=False)
    except (AuthenticationError, ValueError) as error:
        return Link(why=scrub(str(error)).rstrip("."))
    if found is None:
        return Link(why="no API key: `wandb login` stores one")
    key = found.api_key if isinstance(found, wbauth.AuthApiKey) else None
    try:
        account = probe(base_url, key, probe_s)
    except UnusableError as error:
        return Link(why=str(error))
    entity = tracking.entity or session.settings.entity or account
    page = f"{app_url}/{entity}/{tracking.project}" if entity else app_url
    return Link(page=scrub(page), check=lambda: probe(base_url, key, probe_s))


def probe(base_url: str, key: str | None, timeout_s: float) -> str:
    """Ask the server who we are; takes `timeout_s` at most, name resolution included.

    Args:
        key: None if wandb logs in by other means; then any answer is a good one.

    Returns:
        The account's default entity; may be empty.

    Raises:
        UnusableError: no runs can be sent to it.
    """
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(_ask, base_url, key, timeout_s).result(timeout_s)
    except TimeoutError:
        problem = f"does not answer within {timeout_s:g} s"
    except UnusableError as error:
        problem = str(error)
    finally:
        pool.shutdown(wait=False)
    raise UnusableError(scrub(f"{base_url} {problem}"))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would carry the key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _ask(base_url: str, key: str | None, timeout_s: float) -> str:
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
            viewer = json.loads(response.read(_MOST_BYTES))["data"]["viewer"] or {}
            entity = str(viewer.get("entity") or "")
    except urllib.error.HTTPError as error:
        return _refused(error.code)
    except TimeoutError:
        raise
    except (OSError, http.client.HTTPException) as error:
        return _unreachable(getattr(error, "reason", error))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnusableError("does not answer like a W&B server") from None
    if key is not None and not viewer:
        raise UnusableError("does not know the API key")
    return entity


def _refused(status: int) -> str:
    if 300 <= status < 400:
        return ""  # wandb may follow it
    if status in (401, 403):
        raise UnusableError(f"refuses the API key (HTTP {status})")
    raise UnusableError(f"answers HTTP {status}")


def _unreachable(reason: object) -> str:
    if isinstance(reason, ssl.SSLError):
        return ""  # wandb-core trusts other certificates than Python; let it decide
    if isinstance(reason, TimeoutError):
        raise UnusableError("does not answer in time")
    raise UnusableError(f"cannot be reached: {reason}")
