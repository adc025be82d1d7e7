import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from launcher import doctor
from launcher.config import load_config


def named(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


@pytest.mark.slow
def test_a_fit_machine_passes_and_the_trio_really_ran(repository: Path, ray_environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "launcher", "doctor", "--json"]
    done = subprocess.run(command, cwd=repository, env=ray_environment, capture_output=True, text=True, timeout=120)
    found = json.loads(done.stdout)
    checks = {check["name"]: check for check in found["checks"]}
    assert (done.returncode == 0) == found["ok"]
    assert checks["fused lookup on cpu"]["is_ok"] and "devices" in checks and "ray auth" in checks


def test_an_unmatched_trio_is_a_fault_with_the_line_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.12.0", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}
    monkeypatch.setattr(doctor, "installed_versions", lambda: versions)
    (finding,) = doctor.check_versions(load_config(None, []))
    assert not finding.is_ok and "not a matched trio" in finding.found and "pip install" in finding.mend
    monkeypatch.setattr(doctor, "installed_versions", lambda: {"torch": "2.13.0"})
    (finding,) = doctor.check_versions(load_config(None, []))
    assert not finding.is_ok and "torchrec missing" in finding.found


def test_a_cluster_that_does_not_answer_is_a_fault() -> None:
    found = named(list(doctor.check_ray(load_config(None, ["cluster.address=127.0.0.1:9"]))))
    assert not found["ray cluster"].is_ok and "ray start --head" in found["ray cluster"].mend


def test_a_401_of_the_job_server_names_the_mode_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unauthorized(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Unauthorized)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{server.server_port}")
    try:
        (finding,) = doctor.check_auth(load_config(None, []))
    finally:
        server.shutdown()
        server.server_close()
    assert not finding.is_ok and "401" in finding.found and "RAY_AUTH_MODE" in finding.mend


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise OSError("libfoo.so: undefined symbol")

    broken.__name__ = "check_trio"
    monkeypatch.setattr(doctor, "check_trio", broken)
    findings = doctor.examine(load_config(None, []))
    assert any(not f.is_ok and "undefined symbol" in f.found and f.mend for f in findings)
