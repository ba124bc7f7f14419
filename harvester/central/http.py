"""HTTP to a central service: one kept-alive session, bounded in time and size.

The token is read from its file, again whenever that changes, and is sent to the one host it is
for: no redirects, and no proxy between us and the loopback.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harvester.clock import SystemClock
from harvester.errors import (
    CentralRefused,
    CentralUnavailable,
    CredentialsRefused,
    Problem,
    StorageUnavailable,
)

if TYPE_CHECKING:
    import requests

CHUNK_BYTES = 4 * 1024 * 1024
ANSWER_LIMIT_BYTES = 64 * 1024 * 1024
TRANSFER_S = 3600.0  # of one file, however slowly it drips
_RESYNCS = 3
_SENTENCE = 500


class Rejected(CentralRefused):
    """The service refused a call; carries the status and what it says is wrong."""

    def __init__(self, status: int, message: str, body: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = body

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the input, field by field."""
        error = self.body.get("error") if isinstance(self.body, dict) else None
        if not isinstance(error, dict):
            return ()
        listed = error.get("problems", [error])
        return tuple(
            Problem(
                "central service",
                str(item.get("field", "")),
                str(item.get("value", "")),
                str(item.get("message", "")),
            )
            for item in listed
            if isinstance(item, dict)
        )


class Http:
    """Calls to one service. May be used by several threads."""

    def __init__(
        self,
        url: str,
        token_file: Path,
        ca_file: Path | None = None,
        timeout_s: float = 30.0,
        *,
        use_proxy: bool = True,
    ) -> None:
        self.url = url.rstrip("/")
        self._token_file = token_file
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._use_proxy = use_proxy
        self._clock = SystemClock()
        self._session: requests.Session | None = None
        self._token = ""  # none yet  # nosec B105
        self._token_stamp: tuple[int, int] | None = None

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        extra_s: float = 0.0,
    ) -> Any:
        """One call with a JSON answer. ``body`` is JSON unless ``headers`` say otherwise.

        Args:
            extra_s: how much longer than usual the answer may take.

        Raises:
            CentralUnavailable: no sound answer.
            CredentialsRefused: the token or the certificate is not good.
            Rejected: the service says no.
        """
        sent = {"Content-Type": "application/json"} if body is not None else {}
        sent |= headers or {}
        with self._open(method, path, body, params, sent, extra_s) as response:
            data = self._read(response, extra_s)
        return self._decode(method, path, response.status_code, data)

    def have(self, sha256: str) -> int:
        """How many bytes of a file the service has."""
        with self._open("HEAD", f"/files/{sha256}") as response:
            if response.status_code == 404:
                return 0
            if response.status_code != 200:
                self._decode("HEAD", f"/files/{sha256}", response.status_code, b"")
            have = response.headers.get("X-Have", "")
        if not have.isdigit():
            raise CentralUnavailable(f"{self.url} does not say how much of a file it has")
        return int(have)

    def upload(self, path: Path, sha256: str, size: int) -> None:
        """Bring a file to the service, from where an earlier transfer stopped.

        Raises:
            FileNotFoundError: there is no such file (any more), or less of it than said.
            StorageUnavailable: the file cannot be read now.
        """
        have = min(self.have(sha256), size)
        resyncs = 0
        try:
            with path.open("rb") as file:
                while True:
                    file.seek(have)
                    try:
                        answer = self._put(sha256, have, size, file.read(CHUNK_BYTES))
                    except Rejected as error:
                        resyncs += 1
                        if error.status != 409 or resyncs > _RESYNCS:
                            raise
                        have = min(_count(error.body), size)
                        continue
                    if answer.get("complete") is True:
                        return
                    if _count(answer) <= have:
                        # As good as gone: no later try finds the rest of it.
                        raise FileNotFoundError(f"{path} is shorter than {size} bytes")
                    have = _count(answer)
        except FileNotFoundError:
            raise  # purged, say: trying again will not bring it back
        except OSError as error:
            raise StorageUnavailable(f"cannot read {path}: {error.strerror}") from error

    def download(self, sha256: str, target: Path) -> None:
        """Bring a file to ``target`` (0600), checked; a transfer that broke off is resumed.

        Raises:
            StorageUnavailable: the file cannot be written.
        """
        part = target.with_name(target.name + ".part")
        try:
            try:
                self._fetch_rest(sha256, part)
            except Rejected:
                part.unlink()  # there is nothing to take up later
                raise
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            if found != sha256:
                part.unlink()
                raise CentralUnavailable(f"file {sha256} arrived damaged; it is to be fetched anew")
            part.replace(target)
        except OSError as error:
            raise StorageUnavailable(f"cannot write {target}: {error.strerror}") from error

    # --- inside ---

    def _put(self, sha256: str, offset: int, size: int, chunk: bytes) -> dict[str, Any]:
        answer = self.call(
            "PUT",
            f"/files/{sha256}",
            body=chunk,
            params={"offset": str(offset), "size": str(size)},
            headers={"Content-Type": "application/octet-stream"},
        )
        return expect_object(answer, self.url)

    def _fetch_rest(self, sha256: str, part: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(part, flags, 0o600)
        try:
            have = os.fstat(fd).st_size
            headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {}
            path = f"/files/{sha256}"
            with self._open("GET", path, headers=headers) as response:
                if response.status_code == 416:
                    return  # all of it was here already
                if response.status_code not in (200, 206):
                    self._decode("GET", path, response.status_code, self._read(response))
                os.lseek(fd, have if response.status_code == 206 else 0, os.SEEK_SET)
                if response.status_code == 200:
                    os.ftruncate(fd, 0)
                for chunk in self._chunks(response, TRANSFER_S):
                    _write_all(fd, chunk)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        extra_s: float = 0.0,
    ) -> Iterator[requests.Response]:
        import requests

        session = self._make_session()
        sent = {**(headers or {}), "Authorization": f"Bearer {self._read_token()}"}
        try:
            with session.request(
                method,
                f"{self.url}/api/v1{path}",
                data=body,
                params=params,
                headers=sent,
                timeout=(min(self._timeout_s, 10.0), self._timeout_s + extra_s),
                allow_redirects=False,
                stream=True,
            ) as response:
                yield response
        except requests.exceptions.SSLError as error:
            raise CredentialsRefused(
                f"the certificate of {self.url} is not trusted ({_short(error)}); "
                "name its authority with ca_file"
            ) from error
        except requests.RequestException as error:
            raise CentralUnavailable(f"{self.url} does not answer: {_short(error)}") from error

    def _make_session(self) -> requests.Session:
        if self._session is None:
            import requests

            session = requests.Session()
            # A proxy from the environment has no business between us and our own machine.
            ours = is_loopback(urlsplit(self.url).hostname or "")
            session.trust_env = self._use_proxy and not ours
            session.verify = str(self._ca_file) if self._ca_file is not None else True
            self._session = session
        return self._session

    def _read_token(self) -> str:
        path = self._token_file
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp != self._token_stamp:
                if found.st_mode & 0o077:
                    raise CredentialsRefused(f"{path} is open to others; run: chmod 600 {path}")
                self._token = path.read_text().strip()
                self._token_stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            raise CredentialsRefused(f"cannot read the token file {path}: {error}") from error
        if not self._token.isascii() or not self._token.isprintable() or not self._token:
            raise CredentialsRefused(f"{path} does not hold a token")
        return self._token

    def _read(self, response: requests.Response, extra_s: float = 0.0) -> bytes:
        data = bytearray()
        for chunk in self._chunks(response, 2 * self._timeout_s + extra_s):
            data += chunk
            if len(data) > ANSWER_LIMIT_BYTES:
                limit = f"{ANSWER_LIMIT_BYTES} bytes"
                raise CentralUnavailable(f"{self.url} answers with more than {limit}")
        return bytes(data)

    def _chunks(self, response: requests.Response, within_s: float) -> Iterator[bytes]:
        deadline = self._clock.monotonic() + within_s
        for chunk in response.iter_content(256 * 1024):
            if self._clock.monotonic() > deadline:
                raise CentralUnavailable(f"{self.url} takes more than {within_s:g} s to answer")
            yield chunk

    def _decode(self, method: str, path: str, status: int, data: bytes) -> Any:
        try:
            body = json.loads(data) if data else {}
        except (ValueError, RecursionError):
            body = None
        if status == 200 and body is not None:
            return body
        message = f"{self.url}: {method} {path}: {_message(status, body)}"
        if status == 401:
            raise CredentialsRefused(message)
        if 400 <= status < 500 and status not in (408, 429) and _is_its_own(status, body):
            raise Rejected(status, message, body)
        raise CentralUnavailable(message)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def encode(value: Any) -> bytes:
    """JSON for the service, with what no database can keep replaced by ``U+FFFD``.

    Raises:
        CentralRefused: a number is not finite, which nobody may send.
    """
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        if "\\u0000" in text:
            text = json.dumps(_without_nul(value), separators=(",", ":"), ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise CentralRefused(f"a body cannot be sent: {error}") from error
    return text.encode("utf-8", "replace")


def expect_object(value: Any, who: str) -> dict[str, Any]:
    """An answer that is a JSON object.

    Raises:
        CentralUnavailable: it is something else.
    """
    if not isinstance(value, dict):
        raise CentralUnavailable(f"{who} answers with {type(value).__name__}, not an object")
    return value


def _is_its_own(status: int, body: Any) -> bool:
    """Whether a refusal is the service's word; a gateway's passes when somebody mends it."""
    has_reason = isinstance(body, dict) and isinstance(body.get("error"), dict)
    return has_reason or status == 413  # a body that is too large for a gateway stays too large


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, Mapping):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nul(item) for item in value]
    return value


def _message(status: int, body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return f"HTTP status {status} without an explanation"
    where = f"{error['field']}: " if error.get("field") else ""
    value = f"got {error['value']}; " if error.get("value") else ""
    return f"{where}{value}{error.get('message', '')}"[:_SENTENCE]


def _short(error: Exception) -> str:
    # The innermost cause says it best; urllib3 wraps it three times.
    while error.__context__ is not None and isinstance(error.__context__, Exception):
        error = error.__context__
    return f"{type(error).__name__}: {error}"[:_SENTENCE]


def _count(answer: Any) -> int:
    have = answer.get("have") if isinstance(answer, dict) else None
    return have if isinstance(have, int) and not isinstance(have, bool) and have >= 0 else 0


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
