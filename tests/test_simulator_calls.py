"""Request bodies: anything at all is a request or a BadRequest, and lengths are kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.engines.simulator.calls import BadRequest, read_call
from tuner.engines.simulator.flags import parse_args

ARGS = parse_args(["--model-path", "llama-3.2-1b"])
CONTEXT = 1000

paths = st.sampled_from(["/v1/completions", "/v1/chat/completions", "/generate"])
parts = st.sampled_from(["role", "content", "text"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2000) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(parts, inner),
    max_leaves=6,
)
KEYS = "prompt text input_ids messages max_tokens max_completion_tokens n stream stream_options rid"


@given(paths, st.dictionaries(st.sampled_from([*KEYS.split(), "sampling_params"]), anything))
def test_any_object_is_a_request_or_a_bad_request(path: str, body: dict[str, Any]) -> None:
    try:
        request, form, _ = read_call(path, json.dumps(body).encode(), ARGS, CONTEXT)
    except BadRequest as error:
        assert str(error)
        return
    assert 1 <= len(request.prompt) < CONTEXT
    assert 1 <= request.max_new_tokens <= CONTEXT - len(request.prompt)
    json.dumps(form.whole(request))


@pytest.mark.parametrize("body", [b"", b"\xff", b"[" * 100_000, b"null", b'"text"', b"{} {}"])
def test_what_is_no_object_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read_call("/v1/completions", body, ARGS, CONTEXT)


@given(st.lists(st.text(alphabet="ab c\n\t", max_size=20), max_size=5).map(" ".join))
def test_a_token_is_a_word(text: str) -> None:
    body = json.dumps({"prompt": text}).encode()
    if not text.split():
        with pytest.raises(BadRequest):
            read_call("/v1/completions", body, ARGS, CONTEXT)
        return
    request, _, _ = read_call("/v1/completions", body, ARGS, CONTEXT)
    assert request.prompt == tuple(text.split())
    assert request.max_new_tokens == 16
