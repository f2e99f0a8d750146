"""The Helm chart: what it renders is valid Kubernetes, names our settings, and alerts on metrics that exist.

Rendered by the real helm; custom resources (KEDA, Prometheus operator) have no schema here and are looked at by hand.
"""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml

from app.ops.metric_names import METRICS
from config.settings import Settings

CHART = Path(__file__).parents[2] / "deploy/helm/twolane"
HELM = Path(sys.executable).with_name("helm")
PROMTOOL = shutil.which("promtool")
SETTINGS = {f"TWOLANE_{name.upper()}" for name in Settings.model_fields}
ALERTS: list[dict[str, Any]] = yaml.safe_load((CHART / "files/alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
DASHBOARD = json.loads((CHART / "files/dashboard.json").read_text("utf-8"))
EVERYTHING = """
envFrom: [{secretRef: {name: s3}}]
web:
  autoscaling: {enabled: true}
  ingress: {enabled: true, className: nginx, tlsSecret: tls, annotations: {a: b}}
workers:
  - name: search
    models: [BAAI/bge-small-en-v1.5, bge-reranker-base]
    gpus: 1
    modelsClaim: models
    settings: {TWOLANE_P99_MS: 20, TWOLANE_MAX_UPLOAD_BYTES: 8589934592}
    resources: {limits: {memory: 8Gi}}
    autoscaling: {enabled: true, minReplicas: 0, maxReplicas: 8, tokensPerWorker: 3000000, prometheus: "http://p:9090"}
  - {name: cpu, models: [all-MiniLM-L6-v2], replicas: 3}
flower: {enabled: true}
monitoring: {serviceMonitor: true, prometheusRule: true, dashboard: true}
"""
OUTSIDE_REDIS = "redis: {existingSecret: mine}"


@functools.cache
def render(values: str) -> list[dict[str, Any]]:
    command = [HELM, "template", "demo", CHART, "--values", "-"]
    text = subprocess.run(command, input=values, capture_output=True, check=True, text=True).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def named(values: str, kind: str, name: str) -> Any:
    (found,) = [d for d in render(values) if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def environment(deployment: Any) -> dict[str, str]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


@pytest.mark.parametrize("values", ["{}", EVERYTHING, OUTSIDE_REDIS], ids=["plain", "everything", "outside-redis"])
def test_what_it_renders_is_valid_kubernetes(values: str) -> None:
    checked = 0
    for document in render(values):
        if "coreos" not in document["apiVersion"] and "keda" not in document["apiVersion"]:
            kubernetes_validate.validate(document, "1.31", strict=True)
            checked += 1
    assert checked >= 5


def test_every_variable_is_a_setting_and_keeps_its_digits() -> None:
    for deployment in (d for d in render(EVERYTHING) if d["kind"] == "Deployment"):
        names = {name for name in environment(deployment) if name.startswith("TWOLANE_")}
        assert names - SETTINGS == set()
    search = environment(named(EVERYTHING, "Deployment", "demo-worker-search"))
    assert search["TWOLANE_MAX_UPLOAD_BYTES"] == "8589934592"


def test_a_group_has_its_models_and_its_device_and_the_web_knows_all() -> None:
    search, cpu = (named(EVERYTHING, "Deployment", f"demo-worker-{name}") for name in ("search", "cpu"))
    assert environment(search)["TWOLANE_DEVICE"] == "cuda"
    assert environment(cpu)["TWOLANE_DEVICE"] == "cpu"
    assert environment(cpu)["TWOLANE_MODELS"] == "all-MiniLM-L6-v2"
    (container,) = search["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": 1}
    web = environment(named(EVERYTHING, "Deployment", "demo-web"))
    assert web["TWOLANE_MODELS"] == "BAAI/bge-small-en-v1.5,bge-reranker-base,all-MiniLM-L6-v2"


def test_a_worker_has_time_to_finish_its_chunk() -> None:
    pod = named("{}", "Deployment", "demo-worker-cpu")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > Settings.model_fields["worker_stop_s"].default


def test_scaling_counts_the_tokens_of_the_groups_own_lanes() -> None:
    (trigger,) = named(EVERYTHING, "ScaledObject", "demo-worker-search")["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    promql_parser.parse(query)
    (models,) = re.findall(r'model=~"([^"]+)"', query)
    models = models.replace("\\\\", "\\")
    for model in ("baai-bge-small-en-v1.5", "bge-reranker-base"):
        assert re.fullmatch(models, model)
    assert re.fullmatch(models, "all-minilm-l6-v2") is None
    assert trigger["metadata"]["threshold"] == "3000000"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_is_on_metrics_that_exist_and_has_its_runbook(rule: dict[str, Any]) -> None:
    promql_parser.parse(rule["expr"])
    assert _metrics(rule["expr"]) - {metric.name for metric in METRICS} == set()
    runbooks = (CHART.parents[2] / "docs/runbooks.md").read_text("utf-8")
    assert f"\n## {rule['alert']}\n" in runbooks
    assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{rule['alert'].lower()}"


def test_the_dashboard_shows_metrics_that_exist() -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for expression in expressions:
        promql_parser.parse(expression)
    known = {metric.name for metric in METRICS}
    assert set().union(*map(_metrics, expressions)) - known - {f"{name}_bucket" for name in known} == set()


@pytest.mark.skipif(PROMTOOL is None, reason="promtool comes with Prometheus")
def test_the_alerts_fire_in_prometheus_own_test() -> None:
    subprocess.run([str(PROMTOOL), "test", "rules", "alerts_test.yml"], cwd=CHART / "files", check=True)


def _metrics(expression: str) -> set[str]:
    return set(re.findall(r"\btwolane_\w+", expression))
