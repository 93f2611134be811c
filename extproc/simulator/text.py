"""The simulated words and how tokens are counted.

Knows how a text becomes a number of tokens and which words an answer of N tokens holds. Knows no
dialect, no HTTP and no time.
"""

from functools import lru_cache

BYTES_PER_TOKEN = (
    4  # close to what English costs in the common tokenizers, and easy to redo by hand
)
CHAT_OVERHEAD_TOKENS = 3  # what OpenAI's cookbook adds to prime the reply
DEFAULT_OUTPUT_TOKENS = 16  # enough to see a stream, short enough for a benchmark
PREBUILT_WORDS = 4096  # longer answers than this are rare, their words are formatted as they go

_WORDS = tuple(b"tok%d " % index for index in range(PREBUILT_WORDS))


def count_bytes(count: int) -> int:
    """Return the tokens that `count` UTF-8 bytes of text cost: `max(1, ceil(count / 4))`."""
    return max(1, -(-count // BYTES_PER_TOKEN))


def utf8_length(text: str) -> int:
    """Return the length of `text` in UTF-8 bytes."""
    return len(text) if text.isascii() else len(text.encode())


def count(text: str) -> int:
    """Return the tokens of one text."""
    return count_bytes(utf8_length(text))


def words(start: int, stop: int) -> bytes:
    """Return tokens `start` to `stop` (exclusive) of the endless answer, safe inside a JSON string.

    Token `i` is the word `tok<i>` and a space, so a text shows where it was cut.
    """
    if stop <= PREBUILT_WORDS:
        return _WORDS[start] if stop - start == 1 else b"".join(_WORDS[start:stop])
    return b"".join([b"tok%d " % index for index in range(start, stop)])


@lru_cache(maxsize=16)  # an answer may be 10 MB, so few are kept
def answer(tokens: int) -> bytes:
    """Return the whole answer of `tokens` tokens."""
    return words(0, tokens)


def output_tokens(wanted: int | None, limit: int | None) -> tuple[int, bool]:
    """Return how many tokens are sent, and whether the caller's limit cut them."""
    tokens = DEFAULT_OUTPUT_TOKENS if wanted is None else wanted
    if limit is not None and limit < tokens:
        return limit, True
    return tokens, False
