"""``lightning-efficient serve``: answer requests with an exported model."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_efficient.cli.option_parser import OptionParser
from lightning_efficient.cli.output import complain, say
from lightning_efficient.cli.quiet import quiet
from lightning_efficient.errors import ConfigurationError, MissingExtraError

METADATA = "metadata.json"

_ABOUT = "Answer requests of EdgeClient with a model that `lightning-efficient export` has written, until Ctrl-C."
_KEY = "The environment variable LIT_SERVER_API_KEY, where it is set, is what clients must send as X-API-Key."


def run_serve(arguments: Sequence[str]) -> int:
    """Serve until a signal and return the exit status: 130 after Ctrl-C, 143 after SIGTERM, 2 for a mistake."""
    try:
        return _serve(**vars(_parser().parse_args(arguments)))
    except (ConfigurationError, MissingExtraError, OSError) as error:
        complain(error)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="lightning-efficient serve",
        description=_ABOUT,
        epilog=_KEY,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, help="what export has written")
    add("--host", default="127.0.0.1", help="127.0.0.1 for this machine only; 0.0.0.0 or :: for others too")
    add("--port", type=int, default=8000, help="1024 to 65535")
    add("--part", help="of the export; by default global, else model")
    add("--runtime", choices=("torch", "onnx"), default="torch", help="which graph of the export")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where the model runs")
    add("--workers", type=int, default=1, help="processes per device")
    add("--max_batch_size", type=int, default=32, help="most requests answered by one call of the model")
    add("--batch_timeout_ms", type=float, default=2.0, help="how long a request waits for others, in ms")
    add("--max_rows", type=int, default=256, help="most inputs of one request, and of one call of the model")
    add("--max_payload_mb", type=float, default=16.0, help="most MB of one request")
    add("--queue_timeout_s", type=float, default=10.0, help="a request that waited longer is answered 504, in seconds")
    return parser


def _serve(folder: Path, host: str, port: int, **options: Any) -> int:
    if not (folder / METADATA).is_file():
        raise ConfigurationError(f"{folder} is no export: it has no {METADATA}")
    quiet()  # before the import: torch may have something to say as it loads
    from lightning_efficient.inference.serving import serve_global

    def ready() -> None:
        shown = {"127.0.0.1": "localhost", "::": "[::]"}.get(host, host)
        say(f"{folder} is served at http://{shown}:{port}; Ctrl-C ends it")
        sys.stdout.flush()

    with warnings.catch_warnings():
        warnings.showwarning = _warn
        return serve_global(folder, host=host, port=port, on_ready=ready, **options)


def _warn(message: Warning | str, category: type[Warning], *rest: object, **more: object) -> None:
    if category is UserWarning:  # others are of libraries, and for those who write them
        sys.stderr.write(f"warning: {message}\n")
