"""What is found on a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, Block, Command, blocks, commands, commands_of, prose

PAGE = """# A page

<!-- [[[cog
shell("trimtab printed")
]]] -->
```console
$ trimtab printed
```
<!-- [[[end]]] -->

Call `make demo`:

```console
$ trimtab compare a b \\
    --json | jq .total       # and why
{"what": "it says"}
$ pip install '.[report]'
```

```python title="x.py"
import trimtab
```
"""


@pytest.fixture(autouse=True)
def a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE, "utf-8")
    monkeypatch.setitem(PAGES, "page.md", path)


def test_commands_with_what_they_print() -> None:
    first, second = commands("page.md")
    assert first == Command(
        ["trimtab", "compare", "a", "b", "--json"],
        "jq .total       # and why",
        ['{"what": "it says"}'],
    )
    assert second == Command(["pip", "install", ".[report]"], "", [])
    assert commands_of("page.md", "pip") == [second]


def test_blocks_and_text() -> None:
    assert blocks("page.md", "python") == [Block("python", "import trimtab\n")]
    assert [block.language for block in blocks("page.md")] == ["console", "python"]
    assert "make demo" in prose("page.md")
    assert "trimtab" not in prose("page.md")
