"""The verb ``serve``: mistakes are told before torch is loaded, and it serves what was exported."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_efficient.cli.serve import run_serve

CALL = "import sys; from lightning_efficient.cli.serve import run_serve; sys.exit(run_serve(sys.argv[1:]))"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lightning_efficient.inference.export import export_graphs

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exports") / "hybrid"
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    export_graphs({"global": network}, torch.zeros(2, 1, 2, 2), folder, formats=("torch",))
    return folder


def fail_if_served(*arguments: Any, **options: Any) -> int:
    pytest.fail(f"served {arguments} {options}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "the following arguments are required: folder"),
        (["FOLDER", "--prot", "8001"], "unknown option --prot. Did you mean '--port'"),
        (["FOLDER", "--max_batch", "8"], "unknown option --max_batch. Did you mean '--max_batch_size'"),
        (["FOLDER", "--api_key", "secret"], "unknown option --api_key"),
        (["FOLDER", "--port", "many"], "argument --port: invalid int value: 'many'"),
        (["FOLDER", "--device", "gpu"], "invalid choice: 'gpu'"),
        (["FOLDER", "--runtime", "tvm"], "invalid choice: 'tvm'"),
        (["nowhere"], "nowhere is no export: it has no metadata.json"),
        (["FOLDER", "--port", "80"], "port=80 must be an integer from 1024 to 65535"),
        (["FOLDER", "--host", "10.0.0.5"], "host='10.0.0.5' is not one of"),
        (["FOLDER", "--part", "edge"], "part='edge'"),
        (["FOLDER", "--runtime", "onnx"], "runtime='onnx': part 'global' was exported for ['torch'] only"),
    ],
)
def test_a_mistake_is_one_line_and_2(
    export: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("litserve.LitServer.run", fail_if_served)
    status = run_serve([str(export) if word == "FOLDER" else word for word in words])
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err


def test_help_names_the_key_and_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_serve(["--help"])
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "LIT_SERVER_API_KEY" in out
    assert "(default: 127.0.0.1)" in out
    assert "(default: 8000)" in out


@pytest.mark.parametrize(("key", "warned"), [(None, True), ("secret", False)])
def test_letting_others_in_without_a_key_is_warned_of_in_one_line(
    export: Path,
    key: str | None,
    warned: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("litserve.LitServer.run", lambda server, **options: seen.append(options))
    monkeypatch.delenv("LIT_SERVER_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("LIT_SERVER_API_KEY", key)
    assert run_serve([str(export), "--host", "0.0.0.0", "--port", str(free_port())]) == 0
    err = capsys.readouterr().err
    assert err == "" or (err.startswith("warning: host=0.0.0.0 lets other machines in") and err.count("\n") == 1)
    assert bool(err) is warned
    assert (seen[0]["host"], seen[0]["generate_client_file"]) == ("0.0.0.0", False)


def test_mistakes_do_not_load_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from lightning_efficient.cli.serve import run_serve; "
        f"print(run_serve([{str(tmp_path)!r}, '--port', '9000']), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "2 False\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.slow
def test_an_export_is_served_says_so_and_ends_by_ctrl_c(export: Path, tmp_path: Path) -> None:
    from lightning_efficient.inference.edge_client import EdgeClient
    from lightning_efficient.inference.exported import load_export

    port, log = free_port(), tmp_path / "log"
    environment = {**os.environ, "LIT_SERVER_API_KEY": "secret", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", CALL, str(export), "--port", str(port)],
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
            cwd=tmp_path,
        )
    try:
        until = time.monotonic() + 60
        while not log.read_bytes() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert log.read_text() == f"{export} is served at http://localhost:{port}; Ctrl-C ends it\n"
        exported = load_export(export)
        client = EdgeClient(f"http://127.0.0.1:{port}", deadline_ms=10_000, api_key="secret", expect=exported.metadata)
        with client:
            assert client.check()["name"] == "hybrid"
            rows = torch.randn(5, 1, 2, 2)
            torch.testing.assert_close(client(rows), exported.parts["global"](rows))
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == 130
        assert "Traceback" not in log.read_text()
        assert [path.name for path in tmp_path.iterdir()] == ["log"]  # no client file is generated
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
