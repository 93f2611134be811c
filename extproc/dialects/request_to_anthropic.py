"""A chat completion request as a request for an Anthropic message.

Knows: both request formats. Must not know: answers, Envoy, which provider it is for.
Source: OpenAI API reference, Chat; Anthropic API reference, Messages (version 2023-06-01).
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from extproc.dialects.translation import (
    DEFAULT_MAX_TOKENS,
    Json,
    Losses,
    Translated,
    arguments_of,
    object_of,
    objects,
    text_of,
)

JSON_INSTRUCTION: Final = "Answer with one JSON object and nothing else."
_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,(.*)", re.DOTALL)
_CHOICES: Final = {"auto": "auto", "required": "any", "none": "none"}
# Fields that are carried over, or whose stated value asks for nothing Anthropic would not do.
_CARRIED: Final = frozenset(
    {
        "model",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "stop",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "user",
        "safety_identifier",
    }
)
_HARMLESS: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "metadata": ({},),
}


def translate(body: bytes, model: str) -> Translated:
    """Write the request for `model`; `body` is a chat request `openai.read` accepted."""
    asked: Json = msgspec.json.decode(body)
    losses = Losses()
    losses.rest({k: v for k, v in asked.items() if v not in _HARMLESS.get(k, ())}, known=_CARRIED)
    system, turns = _conversation(objects(asked.get("messages")), losses)
    made: Json = {"model": model, "max_tokens": _bound(asked), "messages": turns}
    _format(asked, made, system, losses)
    if system:
        made["system"] = system
    temperature = asked.get("temperature")
    if temperature is not None:
        if temperature > 1:
            losses.add("temperature")
        made["temperature"] = min(temperature, 1)
    if asked.get("top_p") is not None:
        made["top_p"] = asked["top_p"]
    stop = asked.get("stop")
    if stop:
        made["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    _tools(asked, made, losses)
    user = asked.get("safety_identifier") or asked.get("user")
    if isinstance(user, str) and user:
        made["metadata"] = {"user_id": user}
    if asked.get("stream"):
        made["stream"] = True
    return Translated(msgspec.json.encode(made), losses.names())


def _bound(asked: Json) -> int:
    return asked.get("max_completion_tokens") or asked.get("max_tokens") or DEFAULT_MAX_TOKENS


def _format(asked: Json, made: Json, system: list[Json], losses: Losses) -> None:
    wanted = object_of(asked.get("response_format"))
    kind = wanted.get("type", "text")
    if kind == "json_schema":
        schema = object_of(wanted.get("json_schema")).get("schema") or {"type": "object"}
        made["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    elif kind != "text":
        # Because there is no such mode: asking for it is the best there is.
        losses.add("response_format")
        system.append({"type": "text", "text": JSON_INSTRUCTION})


def _conversation(messages: list[Json], losses: Losses) -> tuple[list[Json], list[Json]]:
    system: list[Json] = []
    turns: list[Json] = []
    for message in messages:
        if message.get("name") is not None:
            losses.add("messages[].name")
        role = message.get("role")
        if role in {"system", "developer"}:
            if turns:
                losses.add("messages[].role")  # there is one system prompt, at the start
            system += _parts(message.get("content"), losses)
        elif role == "assistant":
            _say(turns, "assistant", _assistant(message, losses))
        elif role == "tool":
            _say(turns, "user", [_result(message, losses)])
        elif role == "function":
            losses.add("messages[].role")
        else:
            _say(turns, "user", _parts(message.get("content"), losses))
    if not turns and system:
        _say(turns, "user", [system.pop()])  # because there must be a turn
    return system, turns


def _say(turns: list[Json], role: str, blocks: list[Json]) -> None:
    """Add blocks to the turn of a role: results of parallel calls belong to one turn."""
    if not blocks:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    else:
        turns.append({"role": role, "content": blocks})


def _assistant(message: Json, losses: Losses) -> list[Json]:
    blocks = _parts(message.get("content"), losses)
    if isinstance(message.get("refusal"), str):
        blocks += _text(message["refusal"])
    if message.get("function_call") is not None:
        losses.add("messages[].function_call")
    if message.get("audio") is not None:
        losses.add("messages[].audio")
    for call in objects(message.get("tool_calls")):
        function = call.get("function")
        if not isinstance(function, dict):
            losses.add("messages[].tool_calls[].type")
            continue
        arguments = arguments_of(function.get("arguments", ""))
        if arguments is None:
            losses.add("messages[].tool_calls[].function.arguments")
        blocks.append(
            {
                "type": "tool_use",
                "id": text_of(call.get("id")),
                "name": text_of(function.get("name")),
                "input": arguments or {},
            }
        )
    return blocks


def _result(message: Json, losses: Losses) -> Json:
    result: Json = {"type": "tool_result", "tool_use_id": text_of(message.get("tool_call_id"))}
    content = message.get("content")
    if isinstance(content, str):
        result["content"] = content
    else:
        result["content"] = _parts(content, losses)
    return result


def _text(text: str) -> list[Json]:
    return [{"type": "text", "text": text}] if text else []  # an empty block is refused


def _parts(content: Any, losses: Losses) -> list[Json]:
    if isinstance(content, str):
        return _text(content)
    blocks: list[Json] = []
    for part in objects(content):
        kind = part.get("type")
        if kind in {"text", "refusal"}:
            blocks += _text(text_of(part.get(kind)))
        elif kind == "image_url" and isinstance(part.get("image_url"), dict):
            blocks.append(_image(part["image_url"], losses))
        elif kind == "file" and (document := _document(part.get("file"))) is not None:
            blocks.append(document)
        else:
            losses.add(f"messages[].content[].{kind}")
    return blocks


def _image(image: Json, losses: Losses) -> Json:
    if image.get("detail", "auto") != "auto":
        losses.add("messages[].content[].image_url.detail")
    url = text_of(image.get("url"))
    data = _DATA_URL.fullmatch(url)
    if data is None:
        return {"type": "image", "source": {"type": "url", "url": url}}
    source = {"type": "base64", "media_type": data[1], "data": data[2]}
    return {"type": "image", "source": source}


def _document(file: Any) -> Json | None:
    data = _DATA_URL.fullmatch(text_of(file.get("file_data"))) if isinstance(file, dict) else None
    if data is None:
        return None
    source = {"type": "base64", "media_type": data[1], "data": data[2]}
    document: Json = {"type": "document", "source": source}
    if file.get("filename"):
        document["title"] = file["filename"]
    return document


def _tools(asked: Json, made: Json, losses: Losses) -> None:
    tools: list[Json] = []
    for tool in objects(asked.get("tools")):
        function = tool.get("function")
        if not isinstance(function, dict):
            losses.add("tools[].type")
            continue
        one: Json = {"name": text_of(function.get("name"))}
        if function.get("description"):
            one["description"] = function["description"]
        one["input_schema"] = function.get("parameters") or {"type": "object", "properties": {}}
        if function.get("strict"):
            one["strict"] = True
        tools.append(one)
    if not tools:
        return
    made["tools"] = tools
    choice = _choice(asked.get("tool_choice"), losses)
    if asked.get("parallel_tool_calls") is False:
        choice = choice or {"type": "auto"}
        if choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
    if choice is not None:
        made["tool_choice"] = choice


def _choice(choice: Any, losses: Losses) -> Json | None:
    if choice is None:
        return None
    if isinstance(choice, str) and choice in _CHOICES:
        return {"type": _CHOICES[choice]}
    function = choice.get("function") if isinstance(choice, dict) else None
    if isinstance(function, dict):
        return {"type": "tool", "name": text_of(function.get("name"))}
    losses.add("tool_choice")
    return None
