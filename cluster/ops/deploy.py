"""Bring the application up on a connected Ray, watch it come, take it down."""

from __future__ import annotations

import json
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig

import qwen3_ray.errors
from cluster.config import DeployConfig
from qwen3_ray.errors import ConfigError, Qwen3RayError

APP_NAME = "qwen3-ray"
_POLL_S = 0.3
_SILENCE_LIMIT_S = 30.0
"""A Serve that was there before may listen on another port."""
_FAILURE = re.compile(r"failed to start.*?Error:\n(?P<error>.*)", re.DOTALL)
_TYPED_ERROR = re.compile(r"^qwen3_ray\.errors\.(?P<kind>\w+): (?P<message>.*)$", re.MULTILINE)


class StartupError(Qwen3RayError):
    """The application cannot come up; `is_setting` when the user's configuration is the reason."""

    def __init__(self, message: str, *, is_setting: bool) -> None:
        super().__init__(message)
        self.is_setting = is_setting


@contextmanager
def deployed(app: Application, config: DeployConfig, *, ray_stays: bool) -> Iterator[None]:
    """The application on the connected Ray while the block runs; drained at its end.

    After `SystemExit` (a second signal) nothing is drained. On a Ray that stays, a Serve that
    was not there before goes too: it holds the HTTP port.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ends_serve = ray_stays and not serve.status().proxies
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=config.host, port=config.http_port),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    target = serve.RunTarget(app, name=APP_NAME, route_prefix="/")
    serve.run_many(
        [target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
    )
    try:
        yield
    except SystemExit:
        raise
    except BaseException:
        _take_down(ends_serve=ends_serve)
        raise
    _take_down(ends_serve=ends_serve)


def _take_down(*, ends_serve: bool) -> None:
    serve.delete(APP_NAME)
    if ends_serve:
        serve.shutdown()


def wait_until_ready(
    config: DeployConfig, *, on_poll: Callable[[], None], stopped: Callable[[float], bool]
) -> str | None:
    """Wait for an application that answers; the name of its model, or None when stopped.

    Args:
        config: where the application listens.
        on_poll: called a few times a second.
        stopped: waits so many seconds, or less: True ends the wait.

    Raises:
        StartupError: a replica or router cannot start (Serve would go on trying), or the
            application runs but does not answer where it should.
    """
    url = f"http://{_reachable(config.host)}:{config.http_port}"
    num_silent = 0
    while not stopped(_POLL_S):
        on_poll()
        status = serve.status().applications.get(APP_NAME)
        if status is None:
            continue
        _raise_if_failed(status)
        if status.status != ApplicationStatus.RUNNING:
            continue
        model = _served_model(url)
        if model is not None:
            return model
        num_silent += 1
        if num_silent * _POLL_S > _SILENCE_LIMIT_S:
            reason = f"http_port = {config.http_port}: the application runs, but not at {url}"
            raise StartupError(reason, is_setting=True)
    return None


def _raise_if_failed(status: ApplicationStatusOverview) -> None:
    for deployment in status.deployments.values():
        failure = _FAILURE.search(deployment.message)
        if failure is not None:
            raise startup_error(failure["error"])
    if status.status == ApplicationStatus.DEPLOY_FAILED:
        raise startup_error(status.message)


def startup_error(text: str) -> StartupError:
    """The last error of ours in a traceback as one line, or all of it when there is none."""
    *_, typed = [None, *_TYPED_ERROR.finditer(text)]
    if typed is None:
        return StartupError(f"a deployment failed to start: {text.strip()}", is_setting=False)
    kind = getattr(qwen3_ray.errors, typed["kind"], Qwen3RayError)
    return StartupError(typed["message"], is_setting=issubclass(kind, ConfigError))


def _served_model(url: str) -> str | None:
    """Name of the model that answers healthily at `url`; None while there is none."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            pass
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except (urllib.error.URLError, OSError):
        return None


def _reachable(host: str) -> str:
    """An address to reach a server that listens on `host`."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{local}]" if ":" in local else local
