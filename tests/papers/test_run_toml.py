"""Run files as text: what is written is read back as it was."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trimtab.papers.run_toml import as_toml

KEYS = st.text("abc_", min_size=1, max_size=4)
TEXTS = st.text("a=\"'\\\n\t\r#[]é☃𝄞 ", max_size=8)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
ONE = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), TEXTS, FLOATS)
VALUES = ONE | st.lists(ONE, max_size=3)
FILES = st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=4), max_size=4)


@given(FILES)
def test_what_is_written_is_read_back(content: dict[str, Any]) -> None:
    assert tomllib.loads(as_toml(content)) == content


def test_as_a_person_would_write_it() -> None:
    content = {"algorithm": "grpo", "seed": 1, "trainer": {"bf16": True, "learning_rate": 1e-05}}
    assert as_toml(content) == (
        'algorithm = "grpo"\nseed = 1\n\n[trainer]\nbf16 = true\nlearning_rate = 1e-05\n'
    )
