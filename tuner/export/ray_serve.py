"""A config file of Ray Serve's LLM app, for `serve run` and `serve deploy` (Ray 2.60, `ray[serve,llm]`).

Ray Serve LLM starts the engine in its own actors from keyword arguments, so there is no argv: flags become
the fields that the engine's parser puts them into.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tuner.errors import StudyError
from tuner.export.deployment import Deployment, source_of
from tuner.export.yaml import documents, quoted

_APP = "ray.serve.llm:build_openai_app"
_SGLANG = "ray.llm._internal.serve.engines.sglang.SGLangServer"
# Fields of SGLang's ServerArgs that are not called as the flag is, by its parser (0.5.23).
_FIELDS = {
    "tensor_parallel_size": "tp_size",
    "pipeline_parallel_size": "pp_size",
    "data_parallel_size": "dp_size",
    "expert_parallel_size": "ep_size",
    "ep": "ep_size",
    "decode_context_parallel_size": "dcp_size",
    "attention_data_parallel_size": "attn_dp_size",
    "attention_context_parallel_size": "attn_cp_size",
    "moe_data_parallel_size": "moe_dp_size",
    "nccl_init_addr": "dist_init_addr",
    "grpc_http_sidecar_port": "smg_http_sidecar_port",
    "fp8_gemm_backend": "fp8_gemm_runner_backend",
    "fp4_gemm_backend": "fp4_gemm_runner_backend",
    "context_bucket": "cuda_graph_prefill_max_context",
    "speculative_draft_model": "speculative_draft_model_path",
    "elastic_ep_join_mode": "ep_join_mode",
    "elastic_ep_join_rank_offset": "ep_join_rank_offset",
    "enable_hicache": "enable_hierarchical_cache",
    "hierarchical_sparse_attention_extra_config": "hisparse_config",
}
_NVIDIA = re.compile(r"[A-Za-z]{1,2}\d+[A-Za-z]?(-\d+[Gg])?")
_EARLY = (
    "# Ray's own words on SGLang: in early development, https://github.com/ray-project/ray/issues/61114.\n"
)
_SECRETS = "# To be set in the environment of Ray's nodes: {}.\n"


def ray_serve(deployment: Deployment) -> str:
    """An application of one LLMConfig. StudyError for what Ray Serve LLM cannot run.

    Secrets are left to the environment of Ray's nodes: a config file is shown by the dashboard.
    """
    if deployment.engine == "sglang":  # which leaves `false` out, and whose fields keep JSON as text
        given = _kwargs({flag: value for flag, value in deployment.flags.items() if value is not False})
        kwargs = {_FIELDS.get(name, name): value for name, value in given.items()}
        kwargs, engine = {"model_path": deployment.model, **kwargs}, {"server_cls": _SGLANG}
    elif deployment.engine == "vllm":
        given = _kwargs(deployment.flags)
        kwargs, engine = {name: _parsed(value) for name, value in given.items()}, {"llm_engine": "vLLM"}
    else:
        raise StudyError(f"Ray Serve LLM runs vllm and sglang, not {deployment.engine}")
    if _replicas(kwargs) > 1 and not kwargs.get("enable_dp_attention"):  # which lies within tp_size
        raise StudyError(
            "Ray Serve LLM's app gives a deployment no data parallelism within it: "
            "let it have replicas, or launch the engine in another way"
        )
    secrets = [name for name, value in deployment.env.items() if source_of(name, value)]
    env = {name: value for name, value in deployment.env.items() if name not in secrets}
    config = {
        "model_loading_config": {
            "model_id": deployment.served or deployment.model,
            "model_source": deployment.model,
        },
        **engine,
        "engine_kwargs": kwargs,
        **({"accelerator_type": _kind(deployment.accelerator)} if deployment.accelerator else {}),
        "deployment_config": {"num_replicas": 1},
        **({"log_engine_metrics": False} if kwargs.get("disable_log_stats") else {}),
        **({"runtime_env": {"env_vars": env}} if env else {}),
    }
    application = {
        "name": deployment.resource_name,
        "route_prefix": "/",
        "import_path": _APP,
        "args": {"llm_configs": [config]},
    }
    comments = deployment.comments
    comments += _EARLY if deployment.engine == "sglang" else ""
    comments += _SECRETS.format(", ".join(secrets)) if secrets else ""
    return documents({"applications": [quoted(application)]}, comments=comments)


def _kind(accelerator: str) -> str:
    """As Ray spells it: a task may say `h100`."""
    return accelerator.upper() if _NVIDIA.fullmatch(accelerator) else accelerator


def _kwargs(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments: null is left out, `a.b` is the key b of a, `no-a: true` says that a is not."""
    found: dict[str, Any] = {}
    for flag, value in flags.items():
        name, dot, key = flag.partition(".")
        name = name.replace("-", "_")
        if value is None:
            continue
        if dot:
            nested = found.setdefault(name, {})
            if not isinstance(nested, dict):
                raise StudyError(f"{name} is given whole and in part")
            nested[key] = value
        elif value is True and name.startswith("no_"):
            found[name.removeprefix("no_")] = False
        else:
            found[name] = value
    return found


def _parsed(value: Any) -> Any:
    """What a parser makes of a text that is a JSON object or list; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _replicas(kwargs: Mapping[str, Any]) -> int:
    sizes = (kwargs.get("data_parallel_size"), kwargs.get("dp_size"))
    return max((size for size in sizes if isinstance(size, int)), default=1)
