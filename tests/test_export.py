"""Exports: what is printed can be run as it stands, and gives no secret away."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import studies
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tuner.analysis import summary
from tuner.errors import StudyError
from tuner.export import FORMATS, Deployment, best_deployment, docker, flags_json, kubernetes, shell
from tuner.failures import Cause

ARGV = ["python", "-m", "sglang.launch_server", "--model-path", "m", "--tp-size", "2", "--enable-metrics"]
SECRETS = {
    "HF_TOKEN": "hf_s3cret",
    "OPENAI_API_KEY": "sk-s3cret",
    "db_password": "s3cret",
    "MY_SECRET": "s3cret",
}
HOSTILE = [
    "a b",
    "$HOME",
    "`id`",
    "$(id)",
    "'",
    '"',
    "; rm -rf /",
    "&& x",
    "a\\b",
    "*",
    "#x",
    "é",
    "-",
    "",
    "a: b",
    "- c",
    "{x}",
    "~",
    "!!int 3",
    "true",
    "null",
    "1",
]


def deployment(**values: Any) -> Deployment:
    usual: dict[str, Any] = {
        **{"argv": ARGV, "flags": {"tp-size": 2, "enable-metrics": True}, "gpus": 2},
        **{"name": "my-study", "image": "lmsysorg/sglang:v0.5.2"},
    }
    return Deployment(**{**usual, **values})


def words(command: str) -> list[str]:
    """A command's words as a POSIX shell splits them; shlex knows no continued lines."""
    return shlex.split(re.sub(r" \\\n  (?=--)", " ", command), comments=True)


def manifest(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def container(text: str) -> Any:
    [only] = manifest(text)["spec"]["template"]["spec"]["containers"]
    return only


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """`text` of a container's command or environment as the kubelet gives it on (its `expansion.Expand`)."""

    def one(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


# --- shell ---------------------------------------------------------------------------------------------


def test_a_shell_command_a_flag_to_a_line() -> None:
    assert shell(deployment(env={"A": "1"})) == (
        "A=1 python -m sglang.launch_server \\\n  --model-path m --tp-size 2 \\\n  --enable-metrics\n"
    )


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@example(["?0", "\x85", "a \U00010000\x1f" * 9])
@given(st.lists(TEXT | st.sampled_from(HOSTILE), min_size=1, max_size=8))
def test_any_argv_comes_back_from_the_shell_command(rest: list[str]) -> None:
    argv = ["python", *rest]
    assert words(shell(deployment(argv=argv))) == argv
    found = words(docker(deployment(argv=argv)))
    assert [found[found.index("--entrypoint") + 1], *found[len(found) - len(argv) + 1 :]] == argv
    env = {"id": "HIDDEN"}
    command = container(kubernetes(deployment(argv=argv, env=env)))["command"]
    assert [expanded(word, env) for word in command] == argv


@settings(max_examples=10)
@given(st.lists(TEXT | st.sampled_from(HOSTILE), min_size=1, max_size=8), TEXT | st.sampled_from(HOSTILE))
def test_a_real_shell_runs_it_as_it_is(rest: list[str], value: str) -> None:
    argv = [sys.executable, "-I", "-S", "-c", SHOW, *rest]
    note = "Found on the SIMULATOR.\nTwice; rm -rf /"
    env = {"VALUE": value, "A_TOKEN": "literal", "B_KEY": "${MINE}"}
    found, variables = ran(shell(deployment(argv=argv, env=env, note=note)))
    assert found == rest
    assert [variables[name] for name in env] == [value, "the caller's", "mine"]


SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


def ran(command: str, folder: str = "") -> tuple[list[str], dict[str, str]]:
    """The words and variables that the program of `command`, found in `folder`, is given by a real shell."""
    env = {"LC_ALL": "C.UTF-8", "A_TOKEN": "the caller's", "MINE": "mine"}
    env["PATH"] = os.pathsep.join([folder, os.environ["PATH"]])
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, env=env)
    words, found = json.loads(done.stdout)
    return words, found


@settings(max_examples=10)
@given(st.lists(TEXT | st.sampled_from(HOSTILE), min_size=1, max_size=8), TEXT | st.sampled_from(HOSTILE))
def test_a_real_shell_gives_docker_what_it_is_to_have(rest: list[str], value: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "docker")
        program.write_text(f"#!{sys.executable} -IS\n{SHOW}\n")
        program.chmod(0o755)
        env = {"VALUE": value, "A_TOKEN": "literal", "B_KEY": "${MINE}"}
        made = deployment(argv=["serve", *rest], env=env, image=f"image:{value}", model=f"/{value}")
        found, variables = ran(docker(made), folder)
    entry = found.index("--entrypoint")
    assert found[entry + 1 :] == ["serve", f"image:{value}", *rest]
    assert found[found.index("-v") + 1] == f"/{value}:/{value}:ro"
    given = [found[i + 1] for i, word in enumerate(found[:entry]) if word == "-e"]
    assert given == [f"VALUE={value}", "A_TOKEN", "B_KEY"]
    assert (variables["A_TOKEN"], variables["B_KEY"]) == ("the caller's", "mine")


def test_a_first_word_that_looks_like_an_assignment_is_the_program() -> None:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "A=b")
        program.write_text(f"#!{sys.executable} -IS\n{SHOW}\n")
        program.chmod(0o755)
        assert ran(shell(deployment(argv=["A=b", "sh"])), folder)[0] == ["sh"]


# --- docker --------------------------------------------------------------------------------------------


def test_a_docker_command_gives_the_container_its_gpus() -> None:
    found = words(docker(deployment(env={"A": "x y", "HF_TOKEN": "hf_s3cret"})))
    at = found.index("lmsysorg/sglang:v0.5.2")
    options = found[:at]
    assert options[:3] == ["docker", "run", "--rm"]
    assert options[options.index("--gpus") + 1] == "2"
    assert options[options.index("-p") + 1] == "30000:30000"
    assert "--ipc=host" in options
    assert [options[i + 1] for i, word in enumerate(options) if word == "-e"] == [
        "HF_HOME=/huggingface",
        *("A=x y", "HF_TOKEN"),
    ]
    assert [options[options.index("--entrypoint") + 1], *found[at + 1 :]] == ARGV


def test_a_local_model_is_mounted_in_place_of_the_hubs_cache() -> None:
    found = words(docker(deployment(model="/models/my llama.gguf")))
    assert found[found.index("-v") + 1] == "/models/my llama.gguf:/models/my llama.gguf:ro"
    assert "HF_HOME=/huggingface" not in found


def test_an_engine_of_the_cpu_asks_for_no_gpu() -> None:
    argv = ["llama-server", "--model", "/models/m.gguf"]
    on_cpu = deployment(argv=argv, gpus=0, image="ghcr.io/ggml-org/llama.cpp:server", model=argv[-1])
    found = words(docker(on_cpu))
    assert "--gpus" not in found
    assert found[found.index("--entrypoint") + 1] == "/app/llama-server"
    assert "resources" not in container(kubernetes(on_cpu))
    assert container(kubernetes(on_cpu))["command"] == ["/app/llama-server", *argv[1:]]
    assert shell(on_cpu).startswith("llama-server")


# --- Kubernetes ----------------------------------------------------------------------------------------


def test_a_kubernetes_deployment() -> None:
    text = kubernetes(deployment(namespace="autotuner", env={"A": "1", "HF_TOKEN": "hf_s3cret"}))
    found = manifest(text)
    assert (found["apiVersion"], found["kind"]) == ("apps/v1", "Deployment")
    assert found["metadata"] == {"name": "my-study", "namespace": "autotuner", "labels": {"app": "my-study"}}
    spec = found["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"] == {"app": "my-study"}
    assert container(text)["resources"] == {"limits": {"nvidia.com/gpu": 2}}
    assert container(text)["image"] == "lmsysorg/sglang:v0.5.2"
    assert container(text)["ports"] == [{"containerPort": 30000}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container(text)[probe]["httpGet"] == {"path": "/health", "port": 30000}
        assert container(text)[probe]["periodSeconds"] > 0
    assert container(text)["env"] == [
        {"name": "A", "value": "1"},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "my-study", "key": "HF_TOKEN"}}},
    ]
    assert "*id" not in text and "&id" not in text


def test_what_a_kubernetes_deployment_mounts() -> None:
    hub, local = (kubernetes(deployment(model=model)) for model in ("org/model", "/models/m"))
    memory = {"name": "shm", "mountPath": "/dev/shm"}
    assert container(hub)["volumeMounts"] == [memory]
    assert container(local)["volumeMounts"] == [
        memory,
        {"name": "model", "mountPath": "/models/m", "readOnly": True},
    ]
    assert manifest(local)["spec"]["template"]["spec"]["volumes"] == [
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "model", "hostPath": {"path": "/models/m"}},
    ]


def test_without_a_namespace_there_is_none() -> None:
    assert "namespace" not in manifest(kubernetes(deployment()))["metadata"]


@example("a" * 49 + "-b")
@given(TEXT | st.sampled_from([*HOSTILE, "A_B c", "x" * 300, "-a-", "Ünï"]))
def test_any_study_gives_a_name_that_kubernetes_takes(name: str) -> None:
    found = manifest(kubernetes(deployment(name=name)))["metadata"]["name"]
    assert 0 < len(found) <= 63
    assert found.isascii() and found == found.lower()
    assert found[0].isalnum() and found[-1].isalnum()
    assert all(character.isalnum() or character == "-" for character in found)


@pytest.mark.parametrize("value", HOSTILE)
def test_every_environment_value_stays_text(value: str) -> None:
    [variable] = container(kubernetes(deployment(env={"A": value})))["env"]
    assert variable["name"] == "A" and expanded(variable["value"], {"id": "HIDDEN"}) == value
    assert f"A={value}" in words(docker(deployment(env={"A": value})))


@pytest.mark.parametrize(
    "word", ["on", "no", "y", "012", "1_000", "1:30", "0x1f", "1e3", "null", "2026-01-01"]
)
def test_every_word_is_text_in_yaml_1_1_too(word: str) -> None:
    text = kubernetes(
        deployment(argv=[word], image=word, name=word, namespace=word, env={word: word, "N_TOKEN": ""})
    )
    kubectl = YAML(typ="safe", pure=True)
    kubectl.version = (1, 1)
    found = kubectl.load(text)
    assert found == manifest(text)
    [inside] = found["spec"]["template"]["spec"]["containers"]
    assert (inside["command"], inside["image"]) == ([word], word)
    assert inside["env"][0] == {"name": word, "value": word}
    assert found["metadata"]["namespace"] == word


# --- all of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_secrets_never_appear(form: str) -> None:
    assert "s3cret" not in FORMATS[form](deployment(env=SECRETS))


@pytest.mark.parametrize("form", ["shell", "docker", "kubernetes"])
def test_secrets_are_asked_for_by_name(form: str) -> None:
    text = FORMATS[form](deployment(env=SECRETS))
    assert all(name in text for name in SECRETS)


@pytest.mark.parametrize("form", ["shell", "docker", "kubernetes"])
def test_a_note_is_a_comment(form: str) -> None:
    note = "Found on the SIMULATOR.\nMeasure it: twice."
    plain, noted = (FORMATS[form](deployment(note=each)) for each in ("", note))
    assert noted == "# Found on the SIMULATOR.\n# Measure it: twice.\n" + plain


def test_the_flags_as_json() -> None:
    assert json.loads(flags_json(deployment())) == {"tp-size": 2, "enable-metrics": True}


# --- the best of a study -------------------------------------------------------------------------------


def test_the_best_configuration_of_a_study_is_exported_with_its_engines_image() -> None:
    made = studies.make(simulated=True)
    found = best_deployment(made.results())
    best = summary(made.results()).best
    assert best is not None
    assert list(found.argv) == json.loads(best["command"])
    assert (found.gpus, found.image) == (best["gpus"], "lmsysorg/sglang:latest")
    assert "SIMULATOR" in found.note and shell(found).startswith("# Found on the SIMULATOR")
    made.about["engine"] = "llamacpp"
    assert best_deployment(made.results()).image == "ghcr.io/ggml-org/llama.cpp:server"
    made.about["engine"] = "some-plug-in"
    assert "python" in shell(best_deployment(made.results()))
    with pytest.raises(StudyError, match="no container image"):
        docker(best_deployment(made.results()))


def test_a_study_of_another_cannot_name_a_variable_that_is_a_command() -> None:
    made = studies.make()
    made.about["task"]["engine"] = {"env": {"A=1; rm -rf ~;B": "x"}}
    with pytest.raises(StudyError, match="no variable's name"):
        best_deployment(made.results())


def test_nothing_is_exported_where_nothing_finished() -> None:
    made = studies.make(fails=lambda config: Cause.CRASH)
    with pytest.raises(StudyError, match="no configuration to recommend"):
        best_deployment(made.results())
