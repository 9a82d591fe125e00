"""Deployments as tests export them, and what a hostile study would put into one."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tuner.export import Deployment

ARGV = [
    *("python", "-m", "sglang.launch_server", "--model-path", "m", "--served-model-name", "m"),
    *("--port", "30000", "--tp-size", "2", "--enable-metrics"),
]
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
        **{"name": "my-study", "image": "lmsysorg/sglang:v0.5.2", "model": "m"},
    }
    return Deployment(**{**usual, **values})


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def closed(schema: Any) -> Any:
    """A CRD's schema that refuses what it does not name: the API server drops such fields without a word."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields", False)
        return found if open_ended else {**found, "additionalProperties": False}
    return found
