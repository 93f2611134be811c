"""A request for an Anthropic message as a chat completion request.

Knows: both request formats. Must not know: answers, Envoy, which provider it is for.
Source: Anthropic API reference, Messages (version 2023-06-01); OpenAI API reference, Chat.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from extproc.dialects.translation import (
    Json,
    Losses,
    Translated,
    object_of,
    objects,
    text_of,
)

MAX_STOPS: Final = 4  # OpenAI's bound
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_CARRIED: Final = frozenset(
    {
        "model",
        "messages",
        "max_tokens",
        "system",
        "temperature",
        "top_p",
        "stop_sequences",
        "stream",
        "tools",
        "tool_choice",
        "metadata",
        "thinking",
        "output_config",
    }
)
_HARMLESS: Final[dict[str, tuple[Any, ...]]] = {"service_tier": ("auto",)}
_OURS: Final = frozenset({"", "custom"})  # types of tools that are the caller's own


def translate(body: bytes, model: str) -> Translated:
    """Write the request for `model`; `body` is a messages request `anthropic.read` accepted."""
    asked: Json = msgspec.json.decode(body)
    losses = Losses()
    losses.rest({k: v for k, v in asked.items() if v not in _HARMLESS.get(k, ())}, known=_CARRIED)
    messages: list[Json] = []
    system = _joined(asked.get("system"), losses)
    if system:
        messages.append({"role": "system", "content": system})
    for message in objects(asked.get("messages")):
        _turn(message, messages, losses)
    made: Json = {
        "model": model,
        "messages": messages,
        "max_completion_tokens": asked.get("max_tokens"),
    }
    for name in ("temperature", "top_p"):
        if asked.get(name) is not None:
            made[name] = asked[name]
    stops = asked.get("stop_sequences")
    if stops:
        if len(stops) > MAX_STOPS:
            losses.add("stop_sequences")
        made["stop"] = stops[:MAX_STOPS]
    if object_of(asked.get("thinking")).get("type", "disabled") != "disabled":
        losses.add("thinking")
    _tools(asked, made, losses)
    _output(object_of(asked.get("output_config")), made, losses)
    metadata = object_of(asked.get("metadata"))
    losses.rest(metadata, known=("user_id",), prefix="metadata.")
    if metadata.get("user_id"):
        made["user"] = metadata["user_id"]
    if asked.get("stream"):
        # Because the message's usage must be told at its end.
        made |= {"stream": True, "stream_options": {"include_usage": True}}
    return Translated(msgspec.json.encode(made), losses.names())


def _output(config: Json, made: Json, losses: Losses) -> None:
    losses.rest(config, known=("format",), prefix="output_config.")
    wanted = config.get("format")
    if isinstance(wanted, dict):
        schema = {"name": "output", "schema": wanted.get("schema") or {}, "strict": True}
        made["response_format"] = {"type": "json_schema", "json_schema": schema}


def _joined(content: Any, losses: Losses) -> str:
    """Return the text of a system prompt or an assistant's turn."""
    if isinstance(content, str):
        return content
    texts = []
    for block in objects(content):
        _note_cache(block, losses)
        if block.get("type") == "text":
            texts.append(text_of(block.get("text")))
    return "\n\n".join(texts)


def _note_cache(block: Json, losses: Losses) -> None:
    if block.get("cache_control") is not None:
        losses.add("cache_control")  # OpenAI caches by itself, where it does


def _turn(message: Json, messages: list[Json], losses: Losses) -> None:
    content, role = message.get("content"), message.get("role")
    if role == "assistant":
        messages.append(_assistant(content, losses))
    elif role == "system":
        messages.append({"role": "system", "content": _joined(content, losses)})
    elif isinstance(content, str):
        messages.append({"role": "user", "content": content})
    else:
        _user(objects(content), messages, losses)


def _assistant(content: Any, losses: Losses) -> Json:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    calls: list[Json] = []
    texts: list[str] = []
    for block in objects(content):
        _note_cache(block, losses)
        kind = text_of(block.get("type"))
        if kind == "text":
            texts.append(text_of(block.get("text")))
        elif kind == "tool_use":
            arguments = msgspec.json.encode(block.get("input") or {}).decode()
            function = {"name": text_of(block.get("name")), "arguments": arguments}
            calls.append({"id": text_of(block.get("id")), "type": "function", "function": function})
        elif kind in {"thinking", "redacted_thinking"}:
            losses.add("thinking")
        else:
            losses.add(f"messages[].content[].{kind}")
    made: Json = {"role": "assistant", "content": "".join(texts) or None}
    if calls:
        made["tool_calls"] = calls
    elif made["content"] is None:
        made["content"] = ""
    return made


def _user(blocks: list[Json], messages: list[Json], losses: Losses) -> None:
    """Results of tools come first, each a message of its own, then what the user says."""
    parts: list[Json] = []
    for block in blocks:
        _note_cache(block, losses)
        if block.get("type") == "tool_result":
            messages.append(_result(block, parts, losses))
        else:
            _part(block, parts, losses)
    if parts:
        only_text = len(parts) == 1 and parts[0]["type"] == "text"
        messages.append({"role": "user", "content": parts[0]["text"] if only_text else parts})


def _result(block: Json, parts: list[Json], losses: Losses) -> Json:
    if block.get("is_error"):
        losses.add("messages[].content[].is_error")
    content = block.get("content")
    texts = [content] if isinstance(content, str) else []
    for inner in objects(content):
        if inner.get("type") == "text":
            texts.append(text_of(inner.get("text")))
        else:
            _part(inner, parts, losses)  # a tool's message holds text alone, a user's images too
    return {
        "role": "tool",
        "tool_call_id": text_of(block.get("tool_use_id")),
        "content": "\n\n".join(texts),
    }


def _part(block: Json, parts: list[Json], losses: Losses) -> None:
    kind = text_of(block.get("type"))
    source = block.get("source")
    if kind == "text":
        parts.append({"type": "text", "text": text_of(block.get("text"))})
        return
    if isinstance(source, dict) and kind in {"image", "document"}:
        url = _url(source)
        if kind == "image" and url:
            parts.append({"type": "image_url", "image_url": {"url": url}})
            return
        if kind == "document" and source.get("type") == "text":
            parts.append({"type": "text", "text": text_of(source.get("data"))})
            return
        if kind == "document" and source.get("type") == "base64":
            name = text_of(block.get("title")) or "document"
            parts.append({"type": "file", "file": {"filename": name, "file_data": url}})
            return
    losses.add(f"messages[].content[].{kind}")


def _url(source: Json) -> str:
    if source.get("type") == "base64":
        return f"data:{text_of(source.get('media_type'))};base64,{text_of(source.get('data'))}"
    return text_of(source.get("url")) if source.get("type") == "url" else ""


def _tools(asked: Json, made: Json, losses: Losses) -> None:
    tools: list[Json] = []
    for tool in objects(asked.get("tools")):
        _note_cache(tool, losses)
        if text_of(tool.get("type")) not in _OURS:
            losses.add("tools[].type")
            continue
        function: Json = {"name": text_of(tool.get("name"))}
        if tool.get("description"):
            function["description"] = tool["description"]
        function["parameters"] = tool.get("input_schema") or {"type": "object", "properties": {}}
        if tool.get("strict"):
            function["strict"] = True
        tools.append({"type": "function", "function": function})
    if not tools:
        return
    made["tools"] = tools
    choice = object_of(asked.get("tool_choice"))
    kind = text_of(choice.get("type"))
    if kind in _CHOICES:
        made["tool_choice"] = _CHOICES[kind]
    elif kind == "tool":
        name = {"name": text_of(choice.get("name"))}
        made["tool_choice"] = {"type": "function", "function": name}
    elif kind:
        losses.add("tool_choice")
    if choice.get("disable_parallel_tool_use"):
        made["parallel_tool_calls"] = False
