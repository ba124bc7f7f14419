"""Runs the central service: binds its socket, says where it listens, stops cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import getpass
import ipaddress
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from harvester.clock import Clock, SystemClock, iso
from harvester.errors import (
    ConfigurationError,
    CredentialsRefused,
    Problem,
    Refused,
    StorageUnavailable,
)
from harvester.paths import state_home as default_state_home
from harvester.steering.app import make_app
from harvester.steering.asking import Asker, Suggests
from harvester.steering.database import Database, parse_database_url
from harvester.steering.samplers.child import Suggester
from harvester.steering.service import Service, TokenBook
from harvester.steering.tokens import Role, create_token, read_token, signing_key
from harvester.steering.uploads import FileStore
from payload_runner.files import RealFiles

DATABASE_NAME = "central.db"
DISCOVERY_NAME = "central.json"
TOKEN_NAME = "central.token"  # of a file  # nosec B105
LOCK_NAME = "central.lock"
ADMIN_DAYS = 365.0
_RENEW_BEFORE_S = 30 * 86_400.0
_GRACE_S = 1  # of requests under way when the service stops

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate and its key, both PEM files."""

    certificate: Path
    key: Path


def serve(
    database_url: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    state_home: Path | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; blocks. Call it from the main thread.

    Args:
        database_url: SQLite path or URL, or PostgreSQL URL; None: ``central.db`` in the state
            directory.
        port: 0 for any free one.
        state_home: ``$XDG_STATE_HOME/harvester``; None: as the environment says.
        ready: called with the URL once requests are answered.

    Raises:
        ConfigurationError: a database, address or certificate that cannot be used.
        Refused: another service runs from this state directory.
        StorageUnavailable: the state directory or the database refuses.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every plugin it loads
    directory = state_home or default_state_home(os.environ)
    tls = _tls(tls_cert, tls_key)
    _check_host(host, tls)
    RealFiles().make_dir(directory)
    with _only_one(directory), _listen(host, port) as listener:
        database = Database(parse_database_url(database_url, directory / DATABASE_NAME))
        try:
            _serve(directory, database, listener, tls, ready)
        finally:
            database.close()


def open_service(
    directory: Path,
    database: Database,
    clock: Clock | None = None,
    suggester: Suggests | None = None,
) -> Service:
    """Everything a service needs besides a socket, with the tables brought up to date."""
    clock = clock or SystemClock()
    database.migrate()
    return Service(
        database=database,
        files=FileStore(_files_directory(directory, database), database),
        asker=Asker(database, suggester or Suggester(), clock),
        clock=clock,
        key=signing_key(directory),
        tokens=TokenBook(database, clock),
    )


def admin_token_file(directory: Path, now: float) -> Path:
    """The file with the administrator's token, made or renewed where that is due."""
    path = directory / TOKEN_NAME
    if not _is_good(path, directory, now):
        token = create_token(_user(), Role.ADMIN.value, ADMIN_DAYS, state_home=directory)
        RealFiles().replace(path, f"{token}\n".encode())
    return path


def _serve(
    directory: Path,
    database: Database,
    listener: socket.socket,
    tls: Tls | None,
    ready: Callable[[str], None] | None,
) -> None:
    service = open_service(directory, database)
    service.files.sweep(service.clock.now())
    token_file = admin_token_file(directory, service.clock.now())
    url = _url(listener, tls)

    def announce() -> None:
        _write_discovery(directory, url, token_file, service)
        _log.info("Serving url=%s database=%s token=%s", url, database.display, token_file)
        if ready is not None:
            ready(url)

    server = _Server(service, _configuration(service, tls), announce)
    service.asker.start()
    try:
        with server.stopped_by_signals():
            server.run(sockets=[listener])
    finally:
        service.stopping.set()
        service.asker.stop()
        with contextlib.suppress(FileNotFoundError):
            (directory / DISCOVERY_NAME).unlink()
        _log.info("Stopped url=%s", url)


class _Server(uvicorn.Server):
    """A server that leaves signals to us and says when it listens."""

    def __init__(
        self, service: Service, config: uvicorn.Config, announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._announce = announce

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again after it has stopped: no clean exit then.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            await asyncio.get_running_loop().run_in_executor(None, self._announce)

    @contextlib.contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT while the block runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self._stop) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._service.stopping.set()
        self.should_exit = True


def _configuration(service: Service, tls: Tls | None) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(service),
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=75,  # harvesters poll once a minute
        ssl_certfile=None if tls is None else str(tls.certificate),
        ssl_keyfile=None if tls is None else str(tls.key),
    )


def _files_directory(directory: Path, database: Database) -> Path:
    """Beside the database where that is a file."""
    if database.is_sqlite:
        path = Path(str(database.url.database))
        return path.with_name(f"{path.name}.files")
    return directory / "central.files"


def _tls(certificate: Path | None, key: Path | None) -> Tls | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing = "--tls-cert" if certificate is None else "--tls-key"
        raise ConfigurationError(
            Problem("command line", missing, "", "is missing; a certificate needs its key")
        )
    for option, path in (("--tls-cert", certificate), ("--tls-key", key)):
        if not path.is_file() or not os.access(path, os.R_OK):
            raise ConfigurationError(
                Problem("command line", option, str(path), "expected a readable PEM file")
            )
    return Tls(certificate, key)


def _check_host(host: str, tls: Tls | None) -> None:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        expected = f"cannot be resolved: {error}"
        raise ConfigurationError(Problem("command line", "--host", host, expected)) from error
    addresses = {str(item[4][0]).split("%")[0] for item in found}
    if tls is None and not all(ipaddress.ip_address(item).is_loopback for item in addresses):
        expected = (
            "is not this machine's loopback: tokens would travel in the clear; "
            "give --tls-cert and --tls-key, or listen on 127.0.0.1"
        )
        raise ConfigurationError(Problem("command line", "--host", host, expected))


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(128)
        except OSError as error:
            expected = f"cannot listen there: {error.strerror}; choose another, or 0 for any"
            raise ConfigurationError(
                Problem("command line", "--port", str(port), expected)
            ) from error
        yield listener


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Hold the state directory's lock; it goes with the process, however that ends."""
    path = directory / LOCK_NAME
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageUnavailable(f"cannot open {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"another central service runs from {directory}{_who(directory)}; use that one, "
                "stop it, or give this one a state directory of its own (XDG_STATE_HOME)"
            ) from None
        yield
    finally:
        os.close(fd)


def _who(directory: Path) -> str:
    try:
        found = json.loads((directory / DISCOVERY_NAME).read_text())
        return f" (process {found['pid']}, {found['url']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _url(listener: socket.socket, tls: Tls | None) -> str:
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.getfqdn()
    shown = f"[{host}]" if ":" in host else host
    return f"{'http' if tls is None else 'https'}://{shown}:{port}"


def _write_discovery(directory: Path, url: str, token_file: Path, service: Service) -> None:
    found = {
        "url": url,
        "token_file": str(token_file),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "database": service.database.display,
        "started": iso(service.clock.now()),
    }
    RealFiles().replace(directory / DISCOVERY_NAME, (json.dumps(found, indent=1) + "\n").encode())


def _is_good(path: Path, directory: Path, now: float) -> bool:
    try:
        principal = read_token(path.read_text().strip(), signing_key(directory))
    except (OSError, UnicodeDecodeError, CredentialsRefused):
        return False
    return principal.role is Role.ADMIN and principal.expires_at - now > _RENEW_BEFORE_S


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid{os.getuid()}"
