"""docs/compose.yaml cannot be run where there is no Docker; what it says can be held to what the docs promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_every_service_is_on_loopback_and_no_secret_has_a_default() -> None:
    body = yaml.safe_load((DOCS / "compose.yaml").read_text(encoding="utf-8"))
    services = body["services"]
    assert set(services) == {"postgres", "temporal", "vllm"}
    ports = {port.rsplit(":", 1)[-1] for service in services.values() for port in service["ports"]}
    assert ports == {"5432", "7233", "8000"}
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service["ports"])
    secrets = [
        value
        for service in services.values()
        for name, value in service["environment"].items()
        if re.search("PASSWORD|PWD|KEY", name)
    ]
    assert len(secrets) == 3
    assert all(re.fullmatch(r"\$\{[A-Z_]+:\?.+\}", value) for value in secrets), "each must be set by a person"


def test_the_page_names_the_variables_that_the_services_need() -> None:
    page = (DOCS / "distributed.md").read_text(encoding="utf-8")
    wanted = re.findall(r"\$\{([A-Z_]+):\?", (DOCS / "compose.yaml").read_text(encoding="utf-8"))
    for name in wanted:
        assert f"{name}=" in page
    for name in ("WORKBENCH_DATABASE_URL", "TEMPORAL_ADDRESS", "WORKBENCH_LLM_URL", "WORKBENCH_LLM_KEY"):
        assert f"{name}=" in page
