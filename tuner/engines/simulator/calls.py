"""What clients ask for: the bodies of /v1/completions, /v1/chat/completions and /generate, checked."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from tuner.engines.simulator.answers import Chat, Completion, Form, Native
from tuner.engines.simulator.flags import ServerArgs
from tuner.engines.simulator.radix import Tokens
from tuner.engines.simulator.request import Request
from tuner.engines.simulator.text import tokenise, tokenise_chat

COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for completions
# Without max_tokens a chat ends where the model says so, which a simulated one never does: SGLang's default
# of max_new_tokens stands in.
ANSWER_TOKENS = 128


class BadRequest(ValueError):
    """The request cannot be served as it is; answered with status 400."""


def read_call(path: str, body: bytes, args: ServerArgs, context: int) -> tuple[Request, Form, bool]:
    """(request, the form of its answer, whether it is streamed); BadRequest with the reason.

    `context` is the longest that prompt and answer may be together, in tokens.
    """
    call = _json_object(body)
    if call.get("n", 1) not in (1, None):
        raise BadRequest("n other than 1 is not simulated.")
    options = call.get("stream_options")
    usage = isinstance(options, dict) and bool(options.get("include_usage"))
    model = args.served_model_name or args.model_path
    form: Form
    if path == "/generate":
        parameters = call.get("sampling_params") or {}
        if not isinstance(parameters, dict):
            raise BadRequest("sampling_params must be an object.")
        prompt = _prompt(call.get("input_ids") if call.get("text") is None else call["text"])
        most, default = _positive(parameters, "max_new_tokens"), ANSWER_TOKENS
        form = Native(str(call.get("rid") or uuid4().hex))
    elif path == "/v1/chat/completions":
        parameters = call
        prompt = tokenise_chat(_messages(call.get("messages")))
        most = _positive(call, "max_completion_tokens") or _positive(call, "max_tokens")
        default = ANSWER_TOKENS
        form = Chat(model, with_usage=usage, report_cached=args.enable_cache_report)
    else:
        parameters = call
        prompt = _prompt(call.get("prompt"))
        most, default = _positive(call, "max_tokens"), COMPLETION_TOKENS
        form = Completion(model, with_usage=usage, report_cached=args.enable_cache_report)
    _check_length(len(prompt), most or 0, context)
    request = Request(
        prompt, most or min(default, context - len(prompt)), ignore_eos=bool(parameters.get("ignore_eos"))
    )
    return request, form, bool(call.get("stream"))


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"Invalid JSON: {error}") from error
    if not isinstance(call, dict):
        raise BadRequest("The body must be a JSON object.")
    return call


def _prompt(value: Any) -> Tokens:
    """A text, a list of token ids, or a list of one of these."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    tokens: Tokens = ()
    if isinstance(value, str):
        tokens = tokenise(value)
    elif isinstance(value, list) and all(type(token) is int for token in value):
        tokens = tuple(value)
    else:
        raise BadRequest("The prompt must be one text or one list of token ids.")
    if not tokens:
        raise BadRequest("The prompt cannot be empty.")
    return tokens


def _messages(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not value:
        raise BadRequest("messages must be a list of at least one message.")
    messages = []
    for message in value:
        if not isinstance(message, dict):
            raise BadRequest("A message must be an object with role and content.")
        content = message.get("content") or ""
        if isinstance(content, list):  # parts; those that are not text count for nothing
            content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        messages.append((str(message.get("role")), str(content)))
    return messages


def _positive(call: dict[str, Any], name: str) -> int | None:
    value = call.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise BadRequest(f"{name} must be positive")
    return value


def _check_length(prompt: int, most: int, context: int) -> None:
    if prompt >= context:
        raise BadRequest(
            f"The input ({prompt} tokens) is longer than the model's context length ({context} tokens)."
        )
    if prompt + most > context:
        raise BadRequest(
            f"Requested token count exceeds the model's maximum context length of {context} tokens. You "
            f"requested a total of {prompt + most} tokens: {prompt} tokens from the input messages and "
            f"{most} tokens for the completion. Please reduce the number of tokens in the input messages or "
            "the completion to fit within the limit."
        )
