"""Exports: what is printed can be run as it stands, and gives no secret away."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import studies
from deployments import ARGV, HOSTILE, SECRETS, TEXT, deployment
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tuner.analysis import summary
from tuner.cli import main, reading
from tuner.errors import StudyError
from tuner.export import FORMATS, best_deployment, deployment_of, docker, shell
from tuner.failures import Cause
from tuner.objective import SloTerm


def words(command: str) -> list[str]:
    """A command's words as a POSIX shell splits them; shlex knows no continued lines."""
    return shlex.split(re.sub(r" \\\n  (?=--)", " ", command), comments=True)


# --- shell ---------------------------------------------------------------------------------------------


def test_a_shell_command_a_flag_to_a_line() -> None:
    assert shell(deployment(env={"A": "1"})) == (
        "A=1 python -m sglang.launch_server \\\n  --model-path m --served-model-name m \\\n"
        "  --port 30000 --tp-size 2 \\\n  --enable-metrics\n"
    )


@example(["?0", "\x85", "a \U00010000\x1f" * 9])
@given(st.lists(TEXT | st.sampled_from(HOSTILE), min_size=1, max_size=8))
def test_any_argv_comes_back_from_the_shell_command(rest: list[str]) -> None:
    argv = ["python", *rest]
    assert words(shell(deployment(argv=argv))) == argv
    found = words(docker(deployment(argv=argv)))
    assert [found[found.index("--entrypoint") + 1], *found[len(found) - len(argv) + 1 :]] == argv


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
    assert "HF_HOME=/huggingface" not in found and "HF_TOKEN" not in found
    assert {"HF_HOME=/huggingface", "HF_TOKEN"} <= set(words(docker(deployment())))  # if the caller has one


def test_an_engine_of_the_cpu_asks_for_no_gpu() -> None:
    argv = ["llama-server", "--model", "/models/m.gguf"]
    on_cpu = deployment(argv=argv, gpus=0, image="ghcr.io/ggml-org/llama.cpp:server", model=argv[-1])
    found = words(docker(on_cpu))
    assert "--gpus" not in found
    assert found[found.index("--entrypoint") + 1] == "/app/llama-server"
    assert shell(on_cpu).startswith("llama-server")


# --- all of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_secrets_never_appear(form: str) -> None:
    assert "s3cret" not in FORMATS[form](deployment(env=SECRETS))


@pytest.mark.parametrize("form", ["shell", "docker", "compose", "kubernetes", "ome", "ray-serve"])
def test_secrets_are_asked_for_by_name(form: str) -> None:
    text = FORMATS[form](deployment(env=SECRETS))
    assert all(name in text for name in SECRETS)


@pytest.mark.parametrize("form", sorted(FORMATS.keys() - {"json"}))
def test_a_note_and_the_origin_are_comments(form: str) -> None:
    note = "Found on the SIMULATOR.\nMeasure it: twice."
    plain, noted = (FORMATS[form](deployment(note=each, origin=each and "Study x")) for each in ("", note))
    assert noted == "# Found on the SIMULATOR.\n# Measure it: twice.\n# Study x\n" + plain


def test_no_line_of_a_comment_leaves_it() -> None:
    text = shell(deployment(note="a\rb\x85c\u2028d\x0cid", origin="e\x0bid"))
    assert [line for line in text.split("\n") if not line.startswith("#")] == shell(deployment()).split("\n")
    assert "\r" not in text


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


def test_where_the_figures_come_from() -> None:
    made = studies.make(studies.grid(studies.PARAMETERS, 6, 1), terms=[SloTerm("latency", "p90", 9.0)])
    best = summary(made.results()).best
    assert best is not None
    found = best_deployment(made.results())
    first, gain, promises, measured = found.origin.splitlines()
    assert first.startswith(f"Study llama-tune, trial {best['trial']}, its best: mean end-to-end latency")
    assert "than the engine's defaults" in gain and promises == "SLOs: all kept"
    assert measured == f"Measured with sglang 0.5.2, {best['gpus']} GPU{'s' * (best['gpus'] > 1)}"
    assert found.comments.count("\n") == 4 and not found.note


def test_another_trial_is_exported_where_it_is_asked_for() -> None:
    made = studies.make(fails=studies.full_memory_fails)
    results = made.results()
    best = summary(results).best
    assert best is not None
    other, failed = (
        next(t for t in made.trials[1:] if bool(t["failure_cause"]) == wanted and t["trial"] != best["trial"])
        for wanted in (False, True)
    )
    found = deployment_of(results, other["trial"])
    assert list(found.argv) == json.loads(other["command"])
    assert f"trial {other['trial']}: " in found.origin and "its best" not in found.origin
    assert "Gain: " in found.origin and "Gain" not in deployment_of(results, 0).origin
    with pytest.raises(StudyError, match=rf"trial {failed['trial']} failed \(out of memory\)"):
        deployment_of(results, failed["trial"])
    with pytest.raises(StudyError, match="has no trial 999"):
        deployment_of(results, 999)


def test_the_simulators_own_flags_are_no_flags_of_what_is_deployed() -> None:
    made = studies.make(simulated=True)
    made.about["task"]["engine"] = {"args": {"gpu": "h200", "disable-radix-cache": False, "page-size": None}}
    flags = best_deployment(made.results()).flags
    assert "gpu" not in flags
    assert (flags["disable-radix-cache"], flags["page-size"]) == (False, None)


# --- the command ---------------------------------------------------------------------------------------


def told(*words: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_prints_or_writes_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies.make(requests=3).write(tmp_path)
    for form in ("shell", "yaml"):
        assert told("export", "--results", str(tmp_path), "--format", form) == 0
        printed = capsys.readouterr().out
        path = tmp_path / "out"
        assert told("export", "--results", str(tmp_path), "--format", form, "--output", str(path)) == 0
        assert (path.read_text(), capsys.readouterr().out) == (printed, "")
        assert "llama-tune" in printed
    assert told("export", "--results", str(tmp_path), "--output", str(tmp_path)) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_unknown_format_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(FORMATS) == reading.FORMATS
    assert told("export", "--format", "helm") == 2
    said = capsys.readouterr().err
    assert all(f"'{form}'" in said for form in FORMATS)


def test_a_study_of_another_cannot_name_a_variable_that_is_a_command() -> None:
    made = studies.make()
    made.about["task"]["engine"] = {"env": {"A=1; rm -rf ~;B": "x"}}
    with pytest.raises(StudyError, match="no variable's name"):
        best_deployment(made.results())


def test_nothing_is_exported_where_nothing_finished() -> None:
    made = studies.make(fails=lambda config: Cause.CRASH)
    with pytest.raises(StudyError, match=r"no configuration to recommend: No trial finished\.$"):
        best_deployment(made.results())
