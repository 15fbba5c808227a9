"""Finds out where W&B's runs go: under which names, whether there is a key, and a server for it.

`wandb.Api(timeout=3).viewer` would not do: it asks a server that answers HTTP 500 or cannot be
reached again and again until its time is up, and says of both that a process is busy.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from orchestrator.tracking.tracker import mode_of
from orchestrator.tracking.wandb_process import set_up
from sweeps.config.spec import TrackingSpec
from sweeps.core.errors import Problem
from sweeps.core.secrets import scrub

_VARIABLES = {"project": "WANDB_PROJECT", "entity": "WANDB_ENTITY", "tags": "WANDB_TAGS"}
_QUERY = "query Viewer { viewer { id entity username } }"
_MOST_BYTES = 1_000_000
# The limits that wandb.Settings holds to (validate_project, validate_run_tags); a group's is taken
# to be that of a run's name. wandb.init raises, offline too.
_NOT_IN_A_PROJECT = r"/\#?%:"
_MOST_OF_A_NAME = 128
_MOST_OF_A_TAG = 64


class UnusableError(Exception):
    """Why no runs can be sent to the server; without secrets."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """Whether the server can be used.

    Attributes:
        why: it is not online, because; ends a sentence.
        page: the project in the browser, if online.
        entity: the team or user that the project belongs to; empty if it is not known.
        check: asks the server once more; raises UnusableError.
    """

    why: str = ""
    page: str = ""
    entity: str = ""
    check: Callable[[], object] = field(default=lambda: None, repr=False)

    @property
    def online(self) -> bool:
        """Whether the server answered and took the key."""
        return not self.why

    @property
    def line(self) -> str:
        return f"W&B: online, {self.page}" if self.online else f"W&B: offline ({self.why})"


def named(tracking: TrackingSpec) -> TrackingSpec:
    """The same with WANDB_PROJECT, WANDB_ENTITY and WANDB_TAGS for what is not typed."""
    given = {name: os.environ.get(variable, "") for name, variable in _VARIABLES.items()}
    tags = tuple(tag.strip() for tag in given["tags"].split(",") if tag.strip())
    is_default = tracking.project == TrackingSpec.project
    return replace(
        tracking,
        project=(given["project"] if is_default else "") or tracking.project,
        entity=tracking.entity or given["entity"] or None,
        tags=tracking.tags or tags,
    )


def name_problems(tracking: TrackingSpec, group: str) -> list[Problem]:
    """What W&B would refuse of the names.

    Args:
        group: of the runs, the run folder's name.
    """
    used = named(tracking)

    def problem(name: str, value: object, message: str) -> Problem:
        is_typed = getattr(used, name) == getattr(tracking, name)
        key = f"tracking.{name}" if is_typed else _VARIABLES[name]
        return Problem(key=key, value=value, message=message)

    found = []
    bad = sorted({letter for letter in used.project if letter in _NOT_IN_A_PROJECT})
    if bad:
        hint = " The team or user is tracking.entity." if "/" in bad else ""
        message = f"a W&B project's name has none of {_NOT_IN_A_PROJECT} in it.{hint}"
        found.append(problem("project", used.project, message))
    if not 1 <= len(used.project) <= _MOST_OF_A_NAME:
        message = f"a W&B project's name has 1 to {_MOST_OF_A_NAME} letters."
        found.append(problem("project", used.project, message))
    for tag in used.tags:
        if not 1 <= len(tag) <= _MOST_OF_A_TAG:
            message = f"a tag of W&B has 1 to {_MOST_OF_A_TAG} letters."
            found.append(problem("tags", tag, message))
    if len(group) > _MOST_OF_A_NAME:
        message = (
            f"its last part names the group of the W&B runs, of at most {_MOST_OF_A_NAME} letters. "
            "Choose a shorter one, or tracking=off."
        )
        found.append(Problem(key="run_dir", value=group, message=message))
    return found


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
    check = partial(probe, base_url, key, probe_s)
    return Link(page=scrub(page), entity=entity or "", check=check)


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
