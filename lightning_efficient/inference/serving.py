"""Serve one model over HTTP, with the requests of several clients answered in one batch."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import socket
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError, require
from lightning_efficient.functional._checks import check_choice, check_count, check_positive, is_integer
from lightning_efficient.inference._serving_worker import (
    LOG,
    ForkGuard,
    ServedModel,
    Source,
    WorkerSettings,
    check_logits,
    load,
    make_api,
)
from lightning_efficient.inference._wire import KEY_VARIABLE
from lightning_efficient.nn.checkpoints import hash_weights

HOSTS = ("127.0.0.1", "0.0.0.0", "::")
DEVICES = ("auto", "cpu", "cuda", "mps")
PARTS = ("global", "model")
DTYPES = ("float32", "uint8")
RUNTIMES = ("torch", "onnx")


def serve_global(
    source: str | Path | nn.Module | Callable[[Tensor], Tensor],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_batch_size: int = 32,
    batch_timeout_ms: float = 2.0,
    max_rows: int = 256,
    max_payload_mb: float = 16.0,
    queue_timeout_s: float = 10.0,
    api_key: str | None = None,
    device: str = "auto",
    workers: int = 1,
    part: str | None = None,
    runtime: Literal["torch", "onnx"] = "torch",
    input_shape: Sequence[int] | None = None,
    dtype: str = "float32",
    name: str | None = None,
    on_ready: Callable[[], None] | None = None,
) -> int:
    """Answer requests until Ctrl-C or SIGTERM.

    ``POST /predict`` takes the rows of an :class:`~lightning_efficient.inference.edge_client.EdgeClient` and returns
    logits; several requests that wait at the same time are answered by one call of the model, each with its own rows.
    A request that is damaged, too large, not finite, or of another shape is refused with a 4xx before it meets others;
    where the model fails on a batch, its requests are tried one by one and only the guilty one gets a 500. Logits that
    are not finite travel as they are. A request whose client waits no more is answered 504 without being computed.
    ``GET /health`` says 200 when every worker is ready, else 503; before the first is, connections are refused.
    ``GET /info`` says which model it is, see :class:`ServedModel`.

    Nothing is written to disk, and nobody else is called. A worker process that dies is started again; requests that it
    had are never answered, so that clients need their deadline. At the end, requests on their way have half a second.
    Where the process that answers HTTP dies, the server ends, so that whoever started it can start it again.

    The number of connections is not limited, nor how slowly a request may arrive: where others reach the server
    (``host="0.0.0.0"``), put a reverse proxy before it that limits both and that speaks TLS, as the key travels in the
    clear.

    Args:
        source: An export folder; or a network, or another callable from rows ``(m, *input_shape)`` to logits
            ``(m, classes)``, that pickle can carry to a process.
        host: ``127.0.0.1``, which only this machine reaches; ``0.0.0.0`` or ``::``, which others reach.
        port: 1024 to 65535.
        max_batch_size: Most requests answered by one call.
        batch_timeout_ms: How long the first request of a batch waits for others, in ms; 0 takes what is there.
        max_rows: Most rows of a request, and of one call of the model: a larger batch is computed in pieces.
        max_payload_mb: Most MB (10^6 bytes) of a request.
        queue_timeout_s: A request that waited longer, in seconds, is answered 504.
        api_key: What clients must send as ``X-API-Key``; by default the environment variable ``LIT_SERVER_API_KEY``,
            and where that is not set nothing.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``; ``auto`` is the CPU for ``runtime="onnx"``.
        workers: Processes per device, each with the model.
        part: Of an export folder: ``global`` or ``model``; by default the one that it has.
        runtime: Of an export folder: ``torch`` or ``onnx``.
        input_shape: Of one row; an export folder says it, a network or callable does not.
        dtype: Of the rows of a network or callable: ``float32``, which also takes float16, or ``uint8``.
        name: Of the model at ``/info``.
        on_ready: Called once, from a thread, when ``/health`` says 200.

    Returns:
        130 after Ctrl-C, 143 after SIGTERM, 1 where one of LitServe's own processes died, else 0.

    Raises:
        ConfigurationError: an option or a source that cannot work, or a port that is taken.
        MissingExtraError: LitServe is not installed.
    """
    if host not in HOSTS:
        host = "127.0.0.1" if host == "localhost" else host
        check_choice("host", host, HOSTS)
    if not is_integer(port) or not 1024 <= port <= 65535:
        raise ConfigurationError(f"port={port!r} must be an integer from 1024 to 65535.")
    for option, count in (("max_batch_size", max_batch_size), ("max_rows", max_rows), ("workers", workers)):
        check_count(option, count)
    check_positive("max_payload_mb", max_payload_mb)
    check_positive("queue_timeout_s", queue_timeout_s)
    if not 0 <= batch_timeout_ms <= 1000 * queue_timeout_s:
        raise ConfigurationError(f"batch_timeout_ms={batch_timeout_ms!r} must be from 0 to queue_timeout_s.")
    check_choice("device", device, DEVICES)
    check_choice("runtime", runtime, RUNTIMES)
    if runtime == "onnx" and device not in ("auto", "cpu"):
        raise ConfigurationError(f"device={device!r}: runtime='onnx' runs on the CPU; take runtime='torch'.")
    key = os.environ.get(KEY_VARIABLE) or None if api_key is None else api_key
    require("litserve", "serve")
    _check_free(host, port)
    source, part, model = describe(
        source,
        part=part,
        runtime=runtime,
        input_shape=input_shape,
        dtype=dtype,
        name=name,
        max_rows=max_rows,
        max_payload_bytes=int(max_payload_mb * 1e6),
    )
    if host != "127.0.0.1" and not key:
        warnings.warn(f"host={host} lets other machines in and no API key is set; set {KEY_VARIABLE}", stacklevel=2)
    settings = WorkerSettings(source, part, runtime, model, max_batch_size, batch_timeout_ms / 1000, key)
    server = _server(settings, "cpu" if (device, runtime) == ("auto", "onnx") else device, workers, queue_timeout_s)
    if on_ready is not None:
        threading.Thread(target=_tell_when_ready, args=(host, port, on_ready), daemon=True).start()
    with ForkGuard(), _ends_by_signal(server) as ended, _ends_when_one_dies(server, ended):
        server.run(host=host, port=port, num_api_servers=1, log_level="error", generate_client_file=False)
    return ended[0] if ended else 0


def describe(
    source: str | Path | nn.Module | Callable[[Tensor], Tensor],
    *,
    part: str | None = None,
    runtime: Literal["torch", "onnx"] = "torch",
    input_shape: Sequence[int] | None = None,
    dtype: str = "float32",
    name: str | None = None,
    max_rows: int = 256,
    max_payload_bytes: int = 16_000_000,
) -> tuple[Source, str, ServedModel]:
    """Return a source that pickle can carry, which part of it to serve, and what the model is; tries one row.

    Args and errors are those of :func:`serve_global`.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> _, _, model = describe(network, input_shape=(1, 2, 2))
        >>> model.classes, model.input_shape, model.name
        (3, (1, 2, 2), 'Sequential')
    """
    check_choice("dtype", dtype, DTYPES)
    if isinstance(source, str | Path):
        return _describe_export(Path(source), part, runtime, name, max_rows, max_payload_bytes)
    if input_shape is None or not all(is_integer(size) and size > 0 for size in input_shape):
        raise ConfigurationError(f"input_shape={input_shape!r} must be the shape of one row, such as (3, 224, 224).")
    try:
        pickle.dumps(source)
    except Exception as error:
        raise ConfigurationError(
            f"{type(source).__name__} cannot be carried to a worker process: {error}; define it at the top of a module"
        ) from error
    classes = _classes(load(source), input_shape, dtype)
    label = name or str(getattr(source, "__name__", type(source).__name__))
    sha256 = _hash(source.state_dict()) if isinstance(source, nn.Module) else ""
    return source, "", ServedModel(label, sha256, classes, tuple(input_shape), dtype, max_rows, max_payload_bytes)


def _describe_export(
    folder: Path, part: str | None, runtime: str, name: str | None, max_rows: int, max_payload_bytes: int
) -> tuple[Path, str, ServedModel]:
    from lightning_efficient.inference.exported import read_metadata

    metadata = read_metadata(folder)
    held = list(metadata["parts"])
    wanted = PARTS if part is None else (part,)
    chosen = next((name for name in wanted if name in held), None)
    if chosen is None:
        raise ConfigurationError(f"part={part!r}: {folder} has the parts {held}, not {' or '.join(wanted)}.")
    shape, dtype = tuple(metadata["input"]["shape"]), metadata["input"]["dtype"]
    if dtype not in DTYPES:
        raise ConfigurationError(f"{folder} takes {dtype}; only {' or '.join(DTYPES)} can be served")
    classes = _classes(load(folder, chosen, runtime), shape, dtype)
    sha256 = metadata["parts"][chosen]["weights_sha256"]
    label = name or folder.resolve().name
    return folder, chosen, ServedModel(label, sha256, classes, shape, dtype, max_rows, max_payload_bytes)


def _classes(call: Callable[[Tensor], Tensor], input_shape: Sequence[int], dtype: str) -> int:
    row = torch.zeros(1, *input_shape, dtype=getattr(torch, dtype))
    try:
        with torch.inference_mode():
            logits = call(row)
        check_logits(logits, 1)
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigurationError(f"the model fails on one row of shape {tuple(input_shape)}: {line}") from error
    return int(logits.shape[1])


def _hash(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    hash_weights(digest, state)
    return digest.hexdigest()


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            raise ConfigurationError(f"port={port} cannot be used on {host}: {error.strerror}") from error


def _server(settings: WorkerSettings, device: str, workers: int, queue_timeout_s: float) -> Any:
    import litserve

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*max_batch_size parameter was not set.*")
        api = make_api(settings)
    server = litserve.LitServer(
        api,
        accelerator=device,
        workers_per_device=workers,
        timeout=queue_timeout_s,
        model_metadata=settings.model.to_dict(),
        max_payload_size=settings.model.max_payload_bytes,
        disable_openapi_url=True,
        restart_workers=True,
    )
    server.uvicorn_graceful_timeout = 0.5  # else Ctrl-C waits for requests on their way for half a minute
    return server


def _tell_when_ready(host: str, port: int, on_ready: Callable[[], None]) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine needs no proxy
    url = f"http://{'[::1]' if host == '::' else '127.0.0.1'}:{port}/health"
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException), opener.open(url, timeout=1):
            break
        time.sleep(0.1)
    on_ready()


@contextlib.contextmanager
def _ends_by_signal(server: Any) -> Iterator[list[int]]:
    """Turn Ctrl-C and SIGTERM into the KeyboardInterrupt on which LitServe shuts down, and note the exit status."""
    ended: list[int] = []
    process = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() == process and not ended:  # the processes forked from this one have it too
            ended.append(128 + number)
            logging.getLogger("litserve").setLevel(logging.CRITICAL)  # its monitor complains of what is meant to end
            if (told := getattr(server, "_shutdown_event", None)) is not None:
                # else LitServe may start a worker anew that it has just ended; from a thread, as this one waits for it
                threading.Thread(target=told.set, daemon=True).start()
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield ended
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    except KeyboardInterrupt:
        if not ended:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _ends_when_one_dies(server: Any, ended: list[int]) -> Iterator[None]:
    """End the server, with status 1 and one line, where a process dies that LitServe does not start again.

    These are the one that answers HTTP and the one that holds the queues. LitServe looks after its workers only.
    """
    before = {child.pid for child in multiprocessing.active_children()}
    start = server._start_server

    def own() -> list[Any]:
        return [child for child in multiprocessing.active_children() if child.pid not in before]

    def watch(processes: list[Any]) -> None:
        died = multiprocessing.connection.wait([process.sentinel for process in processes])
        time.sleep(0.5)  # Ctrl-C reaches all processes at once, and this one may be the last to note it
        if ended:
            return
        ended.append(1)
        logging.getLogger("litserve").setLevel(logging.CRITICAL)
        names = ", ".join(f"{one.name} ({one.exitcode})" for one in processes if one.sentinel in died)
        LOG.error("the server ends, as a process of it died (its exit code): %s", names)
        with contextlib.suppress(OSError, EOFError):
            server._shutdown_event.set()

    def started(*args: Any, **kwargs: Any) -> Any:
        processes = start(*args, **kwargs)
        watched = [child for child in own() if child.name != "inference-worker"]
        threading.Thread(target=watch, args=(watched,), daemon=True, name="watch-processes").start()
        return processes

    server._start_server = started
    try:
        yield
    except (OSError, EOFError):  # LitServe cannot ask the process that holds the queues any more
        time.sleep(1)
        if not ended:
            raise
    finally:
        for child in own():
            child.kill()
