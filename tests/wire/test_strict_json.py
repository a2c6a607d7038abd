import pytest

from trenza.wire.strict_json import JsonError, read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a":1,"b":{"a":2}}', {"a": 1, "b": {"a": 2}}),
        (b" [1, 2.5, true, null] ", [1, 2.5, True, None]),
        ('"ñ"'.encode(), "ñ"),
        (rb'"\ud83d\udd11"', "🔑"),
        (rb'"\\ud83d"', "\\ud83d"),
    ],
)
def test_text_with_one_meaning_is_read(text, value):
    assert read(text) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b'{"a":1,}', "not JSON"),
        (b"{'a':1}", "not JSON"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b'{"a":01}', "not JSON"),
        (b'{"a":"\n"}', "not JSON"),
        (b'{"a":1,"a":1}', "twice"),
        (rb'{"a":1,"\u0061":1}', "twice"),
        (b'{"b":[{"a":1,"a":2}]}', "twice"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "UTF-8"),
        ('{"a":1}'.encode("utf-16"), "UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (rb'{"a":"\ud800"}', "surrogate"),
        (rb'{"\uDFFF":1}', "surrogate"),
        (b"[" * 100_000, "deeply"),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "deeply"),
        (b"1" * 5_000, "digits"),
    ],
)
def test_text_without_one_meaning_is_refused(text, why):
    with pytest.raises(JsonError, match=why):
        read(text)


def test_a_refusal_repeats_nothing_of_the_values():
    with pytest.raises(JsonError) as refusal:
        read(b'{"key":"c2VjcmV0","key":"c2VjcmV0"}')
    assert "c2Vj" not in str(refusal.value)
    assert refusal.value.__cause__ is None
