"""OME's resources (https://github.com/sgl-project/ome): a model, the runtime that serves it, the service.

The runtime has the configuration; the model and the service are the least that it needs. Written for
ome.io/v1beta1 as of May 2026.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuner.errors import StudyError
from tuner.export.deployment import PORT, Deployment
from tuner.export.kubernetes import env_of, literal, probes, resources_of, shared_memory
from tuner.export.yaml import Quoted, documents

API = "ome.io/v1beta1"
SERVED_PORT = 8080  # which OME routes to
_MODELS = "/mnt/models"
_MODEL_PATH = "$(MODEL_PATH)"  # OME sets it to where it has put the model
_SERVED = ("sglang", "vllm")
# OME lets a runtime serve a model only where these agree; its model agent fills in what a model leaves open.
_FORMAT = {
    "modelFormat": {"name": "safetensors", "version": "1.0.0"},
    "modelFramework": {"name": "transformers", "version": "1.0.0"},
    "modelArchitecture": "AsExported",
}
_WHY = """\
# The BaseModel's modelFormat, modelFramework and modelArchitecture are there to agree with the runtime's.
# Where the cluster has the model already, give its own in their place, in both.
"""


def ome(deployment: Deployment) -> str:
    """A BaseModel, a ServingRuntime whose runner has the argv, and an InferenceService of the two.

    A token for the hub is taken from the Secret of the same name, key HF_TOKEN. StudyError for an engine that
    OME has no runtimes of.
    """
    if deployment.engine not in _SERVED:
        raise StudyError(f"OME serves models with {' or '.join(_SERVED)}, not with {deployment.engine}")
    name, (mount, volume) = Quoted(deployment.resource_name), shared_memory()
    program, *arguments = _argv(deployment)
    metadata = {"name": name} | ({"namespace": Quoted(deployment.namespace)} if deployment.namespace else {})
    runner = {
        "name": "ome-container",
        "image": Quoted(deployment.container_image),
        "command": [_untouched(program)],
        "args": [_untouched(word) for word in arguments],
        "env": env_of(deployment),
        "ports": [{"name": "http1", "containerPort": SERVED_PORT, "protocol": "TCP"}],
        **resources_of(deployment),
        "volumeMounts": [mount],
        **probes(SERVED_PORT),
    }
    model = {
        "apiVersion": API,
        "kind": "BaseModel",
        "metadata": metadata,
        "spec": {**_FORMAT, "storage": _storage(deployment)},
    }
    runtime = {
        "apiVersion": API,
        "kind": "ServingRuntime",
        "metadata": metadata,
        "spec": {
            "supportedModelFormats": [{**_FORMAT, "autoSelect": False}],
            "protocolVersions": ["openAI"],
            "engineConfig": {"volumes": [volume], "runner": runner},
        },
    }
    service = {
        "apiVersion": API,
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {
            "model": {"kind": "BaseModel", "name": name},
            "runtime": {"kind": "ServingRuntime", "name": name},
            "engine": {"minReplicas": 1, "maxReplicas": 1},
        },
    }
    return documents(model, runtime, service, comments=deployment.comments + _WHY)


def _storage(deployment: Deployment) -> dict[str, object]:
    if deployment.folder:
        return {"storageUri": Quoted(f"local://{deployment.folder}"), "path": Quoted(deployment.folder)}
    return {
        "storageUri": Quoted(f"hf://{deployment.model}"),
        "path": Quoted(f"{_MODELS}/{deployment.model}"),
        "key": Quoted(deployment.resource_name),
        "parameters": {"secretKey": "HF_TOKEN"},
    }


def _argv(deployment: Deployment) -> list[str]:
    """The argv with OME's port, and the model where OME has put it."""
    argv = list(deployment.argv_inside)
    places = [place for place, word in enumerate(argv) if word == deployment.model and place]
    given = [place for place in places if argv[place - 1] not in ("--served-model-name", "--tokenizer-path")]
    port = _place_after(argv, "--port")
    if not given or port is None or argv[port] != str(PORT):
        raise StudyError("the launch command on record does not say where its model and its port are")
    argv[given[0]], argv[port] = _MODEL_PATH, str(SERVED_PORT)
    return argv


def _place_after(argv: Sequence[str], flag: str) -> int | None:
    return argv.index(flag) + 1 if flag in argv[:-1] else None


def _untouched(word: str) -> Quoted:
    """`word` as it reaches the engine. OME takes `{{` for the beginning of a template."""
    if "{{" in word:
        raise StudyError(f"OME would take {word!r} for a template: launch it in another way")
    return Quoted(word) if word == _MODEL_PATH else literal(word)
