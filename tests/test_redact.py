"""What looks like a credential goes, and plain words stay."""

import pytest

from extproc.redact import redact

KEY = "sk_" + "aB3-_" * 8 + "xyz"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl-_"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"key {KEY} seen", "key [redacted] seen", id="our key"),
        pytest.param("sk-proj-abcdefgh12345678", "[redacted]", id="an OpenAI key"),
        pytest.param("sk-ant-api03-abcdefgh", "[redacted]", id="an Anthropic key"),
        pytest.param("Bearer abc.def==", "Bearer [redacted]", id="a bearer token"),
        pytest.param(
            "authorization: bearer x", "authorization: bearer [redacted]", id="lower case"
        ),
        pytest.param(f"line\\n{KEY}", "line\\n[redacted]", id="after an escaped line break"),
        pytest.param("Authorization: Basic dTpw", "Authorization: Basic [redacted]", id="basic"),
        pytest.param("x-api-key: hunter2", "x-api-key: [redacted]", id="x-api-key"),
        pytest.param("'api-key': 'hunter2'", "'api-key': '[redacted]'", id="api-key in a repr"),
        pytest.param('{"api_key":"hunter2"}', '{"api_key":"[redacted]"}', id="api_key in JSON"),
        pytest.param(f"token={JWT};", "token=[redacted];", id="a JWT"),
        pytest.param(JWT.rpartition(".")[0], "[redacted]", id="a JWT without its signature"),
        pytest.param(f"{KEY}\n{KEY}", "[redacted]\n[redacted]", id="more than one"),
        pytest.param("risk_assessment_value", "risk_assessment_value", id="sk_ inside a word"),
        pytest.param("key_0123456789abcdef", "key_0123456789abcdef", id="a public key id"),
        pytest.param("the basic settings", "the basic settings", id="plain words"),
        pytest.param("1.2.3.4", "1.2.3.4", id="dots alone"),
    ],
)
def test_redact(text: str, expected: str) -> None:
    """What looks like a credential goes, the rest stays."""
    assert redact(text) == expected
