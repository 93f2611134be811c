"""Guess tokens from bytes, with ratios learned from what providers reported.

Knows: bytes per token of each model, by direction and form. Must not know: texts, tokenizers,
requests or where usage is read. State is bounded: MAX_MODELS models, least recently used go first.

Each ratio is a mean that forgets: observation number n moves it by max(1/n, WEIGHT) of the
difference, so the first replaces the prior, the first sixteen are a plain mean and later ones an
exponentially weighted one (EWMA) that follows a model whose answers change.
"""

from __future__ import annotations

from collections import OrderedDict
from math import ceil
from typing import Final, Literal, TypeAlias

from extproc.domain import Usage, UsageSource
from extproc.policies.usage import MAX_BELIEVED_TOKENS

Kind: TypeAlias = Literal["prompt", "plain", "stream"]
EXPECTED_OUTPUT: Final = 256  # tokens of an answer of a model nobody has asked yet

MAX_MODELS: Final = 1_000  # about 0.3 MB; configurations name tens
WEIGHT: Final = 1 / 16  # half of the weight is on the last eleven answers
MIN_BYTES_PER_TOKEN: Final = 0.25  # a provider that counts four tokens a byte is not counting text
MAX_BYTES_PER_TOKEN: Final = 4096.0  # an event of one token with logprobs is about 2 KB
MAX_ERROR: Final = 100.0  # one absurd report must not hide the others
MAX_BYTES: Final = 2**53  # above it a float would round the count itself

PRIORS: Final[dict[Kind, float]] = {
    "prompt": 4.0,  # English text; OpenAI's own rule of thumb
    "plain": 4.0,  # the same; the frame of a JSON answer is small beside a long answer
    "stream": 256.0,  # one event of one token with its id, model and time
}


class _Mean:
    """A mean of clamped ratios or errors that forgets."""

    __slots__ = ("count", "value")

    def __init__(self, prior: float) -> None:
        self.value = prior
        self.count = 0

    def add(self, observed: float) -> None:
        self.count += 1
        self.value += (observed - self.value) * max(1 / self.count, WEIGHT)


class _Ratios:
    """What is known of one model; kinds nobody has seen stay None."""

    __slots__ = ("output", "plain", "prompt", "stream")

    def __init__(self) -> None:
        self.output = _Mean(EXPECTED_OUTPUT)
        self.prompt: _Mean | None = None
        self.plain: _Mean | None = None
        self.stream: _Mean | None = None


class Estimator:
    """Token estimates that get better with every answer whose usage the provider reported."""

    def __init__(self) -> None:
        # No LRUCache of cachetools, whose looks run Python: 10,000 instructions a call.
        self._models: OrderedDict[str, _Ratios] = OrderedDict()
        self._errors: dict[Kind, _Mean] = {kind: _Mean(0.0) for kind in PRIORS}

    def __len__(self) -> int:
        return len(self._models)

    def __repr__(self) -> str:
        return f"Estimator(models={len(self._models)})"

    def learn(
        self, model: str, stream: bool, prompt_bytes: int, response_bytes: int, usage: Usage
    ) -> None:
        """Take in a complete answer: sizes in bytes, usage as the provider counted it.

        A count or size that is not above 0, or a count above 10**9, teaches nothing, and neither
        does usage that was itself estimated. The error of the estimate that would have been made
        is noted before the ratio moves.
        """
        if usage.source is not UsageSource.PROVIDER:
            return
        ratios = self._models.get(model)
        if ratios is not None:
            self._models.move_to_end(model)
        elif usage.input > 0 or usage.output > 0:
            ratios = self._models[model] = _Ratios()
            if len(self._models) > MAX_MODELS:
                self._models.popitem(last=False)
        else:
            return
        ratios.prompt = self._learn("prompt", ratios.prompt, prompt_bytes, usage.input)
        if stream:
            ratios.stream = self._learn("stream", ratios.stream, response_bytes, usage.output)
        else:
            ratios.plain = self._learn("plain", ratios.plain, response_bytes, usage.output)
        if usage.output <= MAX_BELIEVED_TOKENS:
            ratios.output.add(usage.output)

    def estimate_input(self, model: str, prompt_bytes: int) -> int:
        """Return the tokens of a prompt of so many bytes: 0 for none, else 1 or more."""
        return self._estimate(model, "prompt", prompt_bytes)

    def reserve_input(self, model: str, prompt_bytes: int) -> int:
        """Return the tokens to reserve for a prompt: never fewer than the prior says.

        Because a ratio learned from short calls, whose bytes are mostly JSON, is no measure of a
        long one's text.
        """
        mean = self._known(model, "prompt")
        ratio = min(mean.value, PRIORS["prompt"]) if mean else PRIORS["prompt"]
        return ceil(min(prompt_bytes, MAX_BYTES) / ratio)

    def estimate_output(self, model: str, stream: bool, response_bytes: int, events: int) -> int:
        """Return the tokens of an answer of so many bytes.

        `events` is the number of content events of a stream. While nothing is learned of the
        model's streams it is the estimate (OpenAI sends about one token an event); where it is
        0 too the bytes decide. Meaningless for embeddings: they have no output tokens.
        """
        if stream and events > 0 and self._known(model, "stream") is None:
            return events
        return self._estimate(model, "stream" if stream else "plain", response_bytes)

    def expect_output(self, model: str, bound: int | None) -> int:
        """Return how many tokens an answer should have: the mean of late, never over the bound."""
        ratios = self._models.get(model)
        expected = EXPECTED_OUTPUT if ratios is None else round(ratios.output.value)
        return expected if bound is None else min(expected, bound)

    def error_ratio(self, kind: Kind) -> float | None:
        """Return the mean of |estimate - actual| / actual of late, None before any answer.

        For streams it is the error of the estimate by bytes, not of the count of events.
        """
        error = self._errors[kind]
        return error.value if error.count else None

    def _learn(self, kind: Kind, mean: _Mean | None, size_bytes: int, tokens: int) -> _Mean | None:
        """Note the error of the estimate that would have been made, then move the ratio."""
        if not (size_bytes > 0 and 0 < tokens <= MAX_BELIEVED_TOKENS):
            return mean
        size_bytes = min(size_bytes, MAX_BYTES)
        if mean is None:
            mean = _Mean(PRIORS[kind])
        error = abs(ceil(size_bytes / mean.value) - tokens) / tokens
        self._errors[kind].add(min(error, MAX_ERROR))
        mean.add(min(max(size_bytes / tokens, MIN_BYTES_PER_TOKEN), MAX_BYTES_PER_TOKEN))
        return mean

    def _estimate(self, model: str, kind: Kind, size_bytes: int) -> int:
        if size_bytes <= 0:
            return 0
        mean = self._known(model, kind)
        return ceil(min(size_bytes, MAX_BYTES) / (mean.value if mean else PRIORS[kind]))

    def _known(self, model: str, kind: Kind) -> _Mean | None:
        ratios = self._models.get(model)
        if ratios is None:
            return None
        self._models.move_to_end(model)
        if kind == "prompt":  # one by one, because `getattr` takes ten times as long
            return ratios.prompt
        return ratios.plain if kind == "plain" else ratios.stream
