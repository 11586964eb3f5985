"""Where a campaign file's sources are, and what else it may say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from campaigns import campaign

from evaluators.recipe import ModelRef
from mmmo.config import CampaignConfig, parse
from mmmo.errors import Problems
from mmmo.preflight import workbench


def config(folder: Path, base: str, **more: Any) -> CampaignConfig:
    sources = campaign()["sources"] | {"base": base} | more
    return parse(campaign(sources=sources), folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("./base", "{here}/base"),
        ("./base+./lora", "{here}/base+{here}/lora"),
        ("org/model@v1+./lora", "org/model@v1+{here}/lora"),
        ("./base+me/lora@v2", "{here}/base+me/lora@v2"),
        ("found+org/lora", "{here}/found+org/lora"),
        ("a+b@c", "{here}/a+b@c"),
        ("org/a+b/c", "org/a+b/c"),
        ("~no-such-user/base", "{here}/~no-such-user/base"),
        ("long" * 100, "long" * 100),
    ],
)
def test_paths_are_beside_the_file(tmp_path: Path, text: str, expected: str) -> None:
    for name in ("found", "a+b@c"):
        (tmp_path / name).mkdir()
    found = config(tmp_path, text).sources
    assert found.base == expected.format(here=tmp_path)
    assert found.refs()[0] == ModelRef.parse(found.base)


def test_whose_tokens(tmp_path: Path) -> None:
    assert config(tmp_path, "./base").sources.tokenizer == "base"
    union = config(tmp_path, "./base", tokenizer="union")
    assert union.sources.tokenizer == workbench(union).tokenizer == "union"
    assert union.identity() != config(tmp_path, "./base").identity()
    with pytest.raises(Problems) as caught:
        config(tmp_path, "./base", tokenizer="both")
    (line,) = caught.value.problems
    assert line.startswith("sources.tokenizer: found 'both'")
