"""Exported files are held to their own schemas, and give the engine its flags exactly.

tests/data/deployments says where the schemas are from. Ray's are the models of the Ray that is installed.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml as pyyaml
from deployments import ARGV, HOSTILE, SECRETS, TEXT, closed, deployment
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tuner.engines import make_engine
from tuner.errors import StudyError
from tuner.export import FORMATS, compose, docker, flags_json, flags_yaml, kubernetes, ome, ray_serve, shell
from tuner.task import make_task

DATA = Path(__file__).parent / "data" / "deployments"
COMPOSE, KUBERNETES, OME = (
    json.loads((DATA / name).read_text())
    for name in ("compose-spec.json", "kubernetes.schema.json", "ome.schema.json")
)
INSIDE = ["shell", "docker", "compose", "kubernetes"]  # formats that have the argv as it is


def read(text: str) -> list[Any]:
    """The documents of a YAML file, which readers of YAML 1.1 (kubectl, Ray) and 1.2 take for the same."""
    found = list(YAML(typ="safe", pure=True).load_all(text))
    assert list(pyyaml.safe_load_all(text)) == found
    return found


def kubelets(text: str, variables: Mapping[str, str]) -> str:
    """`text` of a container's command or environment as the kubelet gives it on (its `expansion.Expand`)."""

    def one(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


def composes(text: str, variables: Mapping[str, str]) -> str:
    """`text` of a compose file after its interpolation; KeyError for a variable that must be set, and is not.

    https://github.com/compose-spec/compose-spec/blob/main/12-interpolation.md
    """

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        default = (match[2] or "").removeprefix(":-") if (match[2] or "").startswith(":-") else None
        return variables[match[1]] if default is None else variables.get(match[1], default)

    return re.sub(r"\$\$|\$\{(\w+)(:[-?][^}]*)?\}", one, text)


def service_of(text: str) -> Any:
    """The one service of a compose file that keeps to the specification."""
    [file] = read(text)
    jsonschema.Draft7Validator(COMPOSE).validate(file)
    return file["services"]["engine"]


def container_of(text: str) -> Any:
    """The one container of a manifest that the API server would take."""
    documents = read(text)
    for document in documents:
        jsonschema.validate(document, KUBERNETES)
    [only] = documents[0]["spec"]["template"]["spec"]["containers"]
    return only


def resources_of(text: str) -> dict[str, Any]:
    """OME's resources by kind, each held to its definition."""
    found = {document["kind"]: document for document in read(text)}
    for kind, document in found.items():
        assert document["apiVersion"] == "ome.io/v1beta1"
        jsonschema.validate(document["spec"], closed(OME[kind]))
    return found


def config_of(text: str) -> Any:
    """The LLMConfig in a config file of Ray Serve, as Ray's own models take it."""
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig  # the public name imports vLLM
    from ray.serve.schema import ServeDeploySchema

    [file] = read(text)
    [application] = ServeDeploySchema.model_validate(file).applications
    assert application.import_path == "ray.serve.llm:build_openai_app"
    [config] = application.args["llm_configs"]
    known = {name: value for name, value in config.items() if name != "server_cls"}  # it imports SGLang
    LLMConfig.model_validate(known)
    assert set(config) <= set(LLMConfig.model_fields)
    return config


def seen_by_the_engine(form: str, made: Any, variables: Mapping[str, str]) -> list[str]:
    """The argv that the engine is given in the end."""
    text = FORMATS[form](made)
    if form == "compose":
        service = service_of(text)
        return [composes(word, variables) for word in [*service["entrypoint"], *service["command"]]]
    if form == "kubernetes":
        return [kubelets(word, variables) for word in container_of(text)["command"]]
    words = shlex.split(re.sub(r" \\\n  (?=--)", " ", text), comments=True)
    if form == "docker":
        at = words.index("--entrypoint")
        return [words[at + 1], *words[at + 3 :]]
    return words


# --- what every file gives the engine ------------------------------------------------------------------

JSON = '{"a": {"b": [1, "$x"]}}'
VALUES = [False, True, None, 0, 7, 0.9, 1e-05, "a b", 'say "hi"', JSON, "/models/my llama", ""]


@pytest.mark.parametrize("engine", ["sglang", "vllm", "llamacpp"])
@pytest.mark.parametrize("form", INSIDE)
def test_flags_come_through_exactly(engine: str, form: str) -> None:
    flags = {f"flag-{number}": value for number, value in enumerate(VALUES)}
    task = make_task({"base_runtime": engine, "model": {"id_or_path": "org/m"}, "engine": {"args": flags}})
    argv = make_engine(task).launch_command({})
    made = deployment(argv=argv, flags=flags, engine=engine, model="org/m")
    found = seen_by_the_engine(form, made, {"x": "HIDDEN"})
    assert found[1:] == argv[1:]
    assert {JSON, "/models/my llama", "", "1e-05"} <= set(found)


@example(["?0", "\x85", "a \U00010000\x1f" * 9])
@given(st.lists(TEXT | st.sampled_from(HOSTILE), min_size=1, max_size=8))
@settings(max_examples=25)
def test_any_argv_comes_back_from_a_file(rest: list[str]) -> None:
    argv = ["python", *rest]
    for form in ("compose", "kubernetes"):
        made = deployment(argv=argv, env={"id": "HIDDEN"})
        assert seen_by_the_engine(form, made, {"id": "HIDDEN", "HOME": "HIDDEN"}) == argv


FLAGS = st.dictionaries(
    TEXT | st.sampled_from([*HOSTILE, "on", "y", "012", "tp-size"]),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | st.sampled_from(HOSTILE),
    max_size=6,
)


@example({"a": 1e-05, "b": math.inf, "c": 1e22, "d": 5e-324})
@given(FLAGS)
@settings(max_examples=40)
def test_flags_alone_read_as_they_are(flags: dict[str, Any]) -> None:
    made = deployment(flags=flags, note="Found on the SIMULATOR.")
    assert json.loads(flags_json(made)) == flags
    text = flags_yaml(made)
    assert text.startswith("# Found on the SIMULATOR.\n")
    [found] = read(text)
    assert found == flags and list(map(type, found.values())) == list(map(type, flags.values()))


@pytest.mark.parametrize("value", HOSTILE)
def test_every_environment_value_stays_text(value: str) -> None:
    made = deployment(env={"A": value}, model="/m")
    [variable] = container_of(kubernetes(made))["env"]
    assert variable["name"] == "A" and kubelets(variable["value"], {"id": "HIDDEN"}) == value
    assert composes(service_of(compose(made))["environment"]["A"], {"HOME": "HIDDEN"}) == value


@pytest.mark.parametrize(
    "word", ["on", "no", "y", "012", "1_000", "1:30", "0x1f", "1e3", "null", "2026-01-01"]
)
@pytest.mark.parametrize("form", ["compose", "kubernetes", "ome", "ray-serve"])
def test_every_word_is_text_in_any_yaml(form: str, word: str) -> None:
    words = [*ARGV, word]
    text = FORMATS[form](
        deployment(argv=words, flags={word: word}, image=word, name=word, namespace=word, env={"A": word})
    )
    assert f'"{word}"' in text
    for document in read(text):  # read alike by both, and refused where a text became something else
        assert isinstance(document, dict)
        name = document["applications"][0]["name"] if form == "ray-serve" else document.get("name")
        assert isinstance(name or document["metadata"]["name"], str)


@example("a" * 49 + "-b")
@given(TEXT | st.sampled_from([*HOSTILE, "A_B c", "x" * 300, "-a-", "Ünï", "1st"]))
@settings(max_examples=40)
def test_any_study_gives_a_name_that_kubernetes_takes(name: str) -> None:
    documents = [*read(kubernetes(deployment(name=name))), *read(ome(deployment(name=name)))]
    for found in {document["metadata"]["name"] for document in documents}:
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", found)  # a Service's, the strictest


# --- Docker Compose ------------------------------------------------------------------------------------


def test_a_compose_file() -> None:
    service = service_of(compose(deployment(env={"A": "1", **SECRETS})))
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 2, ["gpu"])
    assert [*service["entrypoint"], *service["command"]] == ARGV
    assert service["image"] == "lmsysorg/sglang:v0.5.2" and service["ports"] == ["30000:30000"]
    given = {
        name: composes(value, dict.fromkeys(SECRETS, "theirs"))
        for name, value in service["environment"].items()
    }
    assert given == {"HF_HOME": "/huggingface", "A": "1", **dict.fromkeys(SECRETS, "theirs")}
    with pytest.raises(KeyError):
        composes(service["environment"]["HF_TOKEN"], {})
    assert "curl" in service["healthcheck"]["test"]


def test_a_local_model_and_no_gpu_in_a_compose_file() -> None:
    service = service_of(compose(deployment(model="/models/my $llama", gpus=0)))
    [volume] = service["volumes"]
    assert composes(volume["source"], {}) == composes(volume["target"], {}) == "/models/my $llama"
    assert volume["read_only"] is True
    assert "deploy" not in service and "environment" not in service


# --- Kubernetes ----------------------------------------------------------------------------------------


def test_a_kubernetes_deployment_and_its_service() -> None:
    text = kubernetes(deployment(namespace="autotuner", env={"A": "1", "HF_TOKEN": "hf_s3cret"}))
    found, service = read(text)
    labels = {"app": "my-study"}
    assert (found["apiVersion"], found["kind"], service["kind"]) == ("apps/v1", "Deployment", "Service")
    assert found["metadata"] == {"name": "my-study", "namespace": "autotuner", "labels": labels}
    assert service["metadata"] == found["metadata"]
    spec, container = found["spec"], container_of(text)
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"] == labels
    assert service["spec"]["selector"] == labels
    [port], [served] = container["ports"], service["spec"]["ports"]
    assert port == {"name": served["targetPort"], "containerPort": served["port"]}
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 2}}
    assert container["image"] == "lmsysorg/sglang:v0.5.2"
    assert container["env"] == [
        {"name": "HF_HOME", "value": "/huggingface"},
        {"name": "A", "value": "1"},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "my-study", "key": "HF_TOKEN"}}},
    ]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert spec["template"]["spec"]["enableServiceLinks"] is False  # no VLLM_PORT of a Service called vllm
    assert "*id" not in text and "&id" not in text


def test_probes_wait_for_a_model_that_loads_for_minutes() -> None:
    container = container_of(kubernetes(deployment()))
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[name]["httpGet"] == {"path": "/health", "port": 30000}
    patience = {
        name: container[name]["periodSeconds"] * container[name]["failureThreshold"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert patience["startupProbe"] >= 1200 > patience["livenessProbe"] > patience["readinessProbe"]
    assert all(container[name]["timeoutSeconds"] >= 5 for name in patience)
    [found, _] = read(kubernetes(deployment()))
    assert found["spec"]["progressDeadlineSeconds"] > patience["startupProbe"]  # the image is pulled before


def test_what_a_kubernetes_deployment_mounts() -> None:
    hub, local = (kubernetes(deployment(model=model)) for model in ("org/model", "/models/m"))
    memory = {"name": "dshm", "mountPath": "/dev/shm"}
    assert container_of(hub)["volumeMounts"] == [memory, {"name": "hub", "mountPath": "/huggingface"}]
    assert container_of(local)["volumeMounts"] == [
        memory,
        {"name": "model", "mountPath": "/models/m", "readOnly": True},
    ]
    assert read(local)[0]["spec"]["template"]["spec"]["volumes"] == [
        {"name": "dshm", "emptyDir": {"medium": "Memory"}},
        {"name": "model", "hostPath": {"path": "/models/m"}},
    ]


def test_a_hubs_token_is_taken_if_the_secret_has_one() -> None:
    token = container_of(kubernetes(deployment(model="org/model")))["env"][-1]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "my-study", "key": "HF_TOKEN", "optional": True}
    assert container_of(kubernetes(deployment(model="/m")))["env"] == []


def test_without_a_namespace_there_is_none() -> None:
    assert all("namespace" not in each["metadata"] for each in read(kubernetes(deployment())))


def test_an_engine_of_the_cpu_asks_for_no_gpu() -> None:
    argv = ["llama-server", "--model", "/models/m.gguf"]
    made = deployment(argv=argv, gpus=0, image="i", model=argv[-1], engine="llamacpp")
    assert "resources" not in container_of(kubernetes(made))
    assert container_of(kubernetes(made))["command"] == ["/app/llama-server", *argv[1:]]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.template.spec.containers.0.startupProbe.failureTreshold", 3),
        ("spec.template.spec.containers.0.ports.0.containerPort", "30000"),
        ("spec.template.spec.containers.0.securityContext.allowPrivilegeEscalation", "no"),
        ("spec.replicas", "1"),
    ],
)
def test_the_schema_of_kubernetes_tells_right_from_wrong(path: str, value: Any) -> None:
    changed = read(kubernetes(deployment()))[0]
    *above, last = path.split(".")
    node = changed
    for key in above:
        node = node[int(key)] if isinstance(node, list) else node[key]
    node[last] = value
    assert not jsonschema.Draft202012Validator(KUBERNETES).is_valid(changed)


# --- OME -----------------------------------------------------------------------------------------------


def test_omes_resources_refer_to_each_other() -> None:
    found = resources_of(ome(deployment(model="org/m-7b", argv=argv_of("org/m-7b"), namespace="llm")))
    assert list(found) == ["BaseModel", "ServingRuntime", "InferenceService"]
    model, runtime, service = (each["spec"] for each in found.values())
    assert service["model"] == {"kind": "BaseModel", "name": found["BaseModel"]["metadata"]["name"]}
    assert service["runtime"] == {
        "kind": "ServingRuntime",
        "name": found["ServingRuntime"]["metadata"]["name"],
    }
    assert {each["metadata"]["namespace"] for each in found.values()} == {"llm"}
    [served] = runtime["supportedModelFormats"]
    for name in ("modelFormat", "modelFramework", "modelArchitecture"):  # what OME's matcher compares
        assert served[name] == model[name]
    assert model["storage"] == {
        "storageUri": "hf://org/m-7b",
        "path": "/mnt/models/org/m-7b",
        "key": "my-study",
        "parameters": {"secretKey": "HF_TOKEN"},
    }


def argv_of(model: str) -> list[str]:
    return [model if word == "m" else word for word in ARGV]


def test_omes_runner_has_the_argv_with_omes_model_and_port() -> None:
    made = deployment(env={"A": "1", "B_KEY": "s3cret"})
    runner = resources_of(ome(made))["ServingRuntime"]["spec"]["engineConfig"]["runner"]
    given = [kubelets(word, {"MODEL_PATH": "/put/here"}) for word in [*runner["command"], *runner["args"]]]
    expected = list(ARGV)
    expected[expected.index("--model-path") + 1] = "/put/here"
    expected[expected.index("--port") + 1] = "8080"
    assert given == expected
    assert runner["ports"][0]["containerPort"] == runner["startupProbe"]["httpGet"]["port"] == 8080
    assert runner["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert runner["env"] == [
        {"name": "A", "value": "1"},
        {"name": "B_KEY", "valueFrom": {"secretKeyRef": {"name": "my-study", "key": "B_KEY"}}},
    ]


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_ome_finds_the_model_in_each_engines_own_command(engine: str) -> None:
    task = make_task({"base_runtime": engine, "model": {"id_or_path": "/models/m"}})
    argv = make_engine(task).launch_command({"trust-remote-code": True})
    found = resources_of(ome(deployment(argv=argv, engine=engine, model="/models/m")))
    args = found["ServingRuntime"]["spec"]["engineConfig"]["runner"]["args"]
    assert args.count("$(MODEL_PATH)") == 1
    assert args[args.index("--served-model-name") + 1] == "/models/m"
    storage = found["BaseModel"]["spec"]["storage"]
    assert storage == {"storageUri": "local:///models/m", "path": "/models/m"}


def test_what_ome_cannot_take_is_refused() -> None:
    with pytest.raises(StudyError, match="not with llamacpp"):
        ome(deployment(engine="llamacpp"))
    with pytest.raises(StudyError, match="template"):
        ome(deployment(argv=[*ARGV, "--chat-template", "{{ x }}"]))
    with pytest.raises(StudyError, match="does not say where"):
        ome(deployment(argv=["python", "serve.py"]))


def test_the_definition_of_ome_tells_right_from_wrong() -> None:
    found = resources_of(ome(deployment()))["InferenceService"]["spec"]
    validator = jsonschema.Draft202012Validator(closed(OME["InferenceService"]))
    assert validator.is_valid(found)
    assert not validator.is_valid({**found, "runtim": {}})
    assert not validator.is_valid({**found, "engine": {"minReplicas": "1"}})


# --- Ray Serve LLM -------------------------------------------------------------------------------------


def test_a_ray_serve_config_of_vllm() -> None:
    flags = {
        **{"tensor-parallel-size": 2, "gpu-memory-utilization": 0.9, "enable-prefix-caching": False},
        **{"max-num-seqs": None, "hf-overrides": '{"a": [1]}', "compilation-config.mode": 3},
        "chat-template": "{% if x %}",
    }
    made = deployment(engine="vllm", flags=flags, model="org/m", env={"A": "1", **SECRETS})
    config = config_of(ray_serve(replace(made, served="chat", accelerator="H100")))
    assert config["model_loading_config"] == {"model_id": "chat", "model_source": "org/m"}
    assert (config["llm_engine"], config["accelerator_type"]) == ("vLLM", "H100")
    assert config["engine_kwargs"] == {
        **{"tensor_parallel_size": 2, "gpu_memory_utilization": 0.9, "enable_prefix_caching": False},
        **{"hf_overrides": {"a": [1]}, "compilation_config": {"mode": 3}, "chat_template": "{% if x %}"},
    }
    assert config["runtime_env"] == {"env_vars": {"A": "1"}}


def test_a_ray_serve_config_of_sglang() -> None:
    flags = {"tensor-parallel-size": 2, "disable-radix-cache": True, "enable-mixed-chunk": False}
    text = ray_serve(deployment(flags={**flags, "json-model-override-args": '{"a": 1}'}, model="org/m"))
    config = config_of(text)
    module, _, name = config["server_cls"].rpartition(".")
    source = Path(ray.__file__).parents[1].joinpath(*module.split("."), "__init__.py")
    assert name in source.read_text()  # that it is there: SGLang is needed to import it
    assert "in early development" in text
    assert config["engine_kwargs"] == {
        **{"model_path": "org/m", "tp_size": 2, "disable_radix_cache": True},
        "json_model_override_args": '{"a": 1}',
    }


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ({"ep": 8}, {"ep_size": 8}),
        ({"expert-parallel-size": 8, "attention-data-parallel-size": 2}, {"ep_size": 8, "attn_dp_size": 2}),
        ({"fp8-gemm-backend": "auto"}, {"fp8_gemm_runner_backend": "auto"}),
        ({"enable-hicache": True}, {"enable_hierarchical_cache": True}),
        ({"enable-hicache": False}, {}),
        ({"speculative-draft-model": "org/d"}, {"speculative_draft_model_path": "org/d"}),
        ({"context-bucket": 8}, {"cuda_graph_prefill_max_context": 8}),
        ({"no-lora-strict-loading": True}, {"lora_strict_loading": False}),
        ({"no-lora-strict-loading": False}, {}),
        ({"tensor-parallel-size": 4, "tp-size": 2}, {"tp_size": 2}),  # the last, as on the command line
    ],
)
def test_flags_become_the_fields_that_sglang_has(flags: dict[str, Any], fields: dict[str, Any]) -> None:
    config = config_of(ray_serve(deployment(flags=flags, model="org/m")))
    assert config["engine_kwargs"] == {"model_path": "org/m", **fields}


def test_what_vllm_is_told_not_to_do_is_a_false_field() -> None:
    flags = {"no-enable-prefix-caching": True, "enforce-eager": False, "no-async-scheduling": None}
    kwargs = config_of(ray_serve(deployment(engine="vllm", flags=flags)))["engine_kwargs"]
    assert kwargs == {"enable_prefix_caching": False, "enforce_eager": False}


def test_what_ray_serve_llm_cannot_run_is_refused() -> None:
    with pytest.raises(StudyError, match="runs vllm and sglang, not llamacpp"):
        ray_serve(deployment(engine="llamacpp"))
    with pytest.raises(StudyError, match="data parallelism"):
        ray_serve(deployment(engine="vllm", flags={"data-parallel-size": 2}))
    within = {"tp-size": 4, "data-parallel-size": 4, "enable-dp-attention": True}
    assert config_of(ray_serve(deployment(flags=within)))["engine_kwargs"]["dp_size"] == 4


@pytest.mark.parametrize(("kind", "spelt"), [("h100", "H100"), ("a100-80g", "A100-80G"), ("L40S", "L40S")])
def test_ray_knows_the_kind_of_gpu(kind: str, spelt: str) -> None:
    made = deployment(engine="vllm", accelerator=kind)
    assert config_of(ray_serve(made))["accelerator_type"] == spelt


def test_log_stats_and_engine_metrics_exclude_each_other() -> None:
    assert config_of(ray_serve(deployment(engine="vllm", flags={"disable-log-stats": True})))


def test_commands_name_the_image() -> None:
    made = deployment(image="")
    assert shell(made)
    for form in (docker, compose, kubernetes, ome):
        with pytest.raises(StudyError, match="no container image"):
            form(made)
