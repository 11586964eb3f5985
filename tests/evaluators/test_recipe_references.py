"""References to models and adapters: text to `ModelRef` and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evaluators.recipe import MergeRecipe, ModelRef

plain = st.text(st.characters(exclude_characters="+@", exclude_categories=["Cs"]), min_size=1)
some = st.none() | plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model", ModelRef(path="org/model")),
        ("org/model@v1", ModelRef(path="org/model", revision="v1")),
        ("org/model+me/lora", ModelRef(path="org/model", adapter="me/lora")),
        (
            "org/model@v1+me/lora@v2",
            ModelRef(path="org/model", revision="v1", adapter="me/lora", adapter_revision="v2"),
        ),
        ("c++", ModelRef(path="c++")),
        ("+b", ModelRef(path="+b")),
        ("a@", ModelRef(path="a@")),
        ("/c++/base+./lora", ModelRef(path="/c++/base", adapter="./lora")),
    ],
)
def test_grammar(text: str, expected: ModelRef) -> None:
    assert ModelRef.parse(text) == expected


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert str(ModelRef.parse(text)) == text


@given(plain, some, some, some)
def test_any_reference_comes_back(
    path: str, revision: str | None, adapter: str | None, adapter_revision: str | None
) -> None:
    if adapter is None:
        adapter_revision = None
    ref = ModelRef(path=path, revision=revision, adapter=adapter, adapter_revision=adapter_revision)
    assert ModelRef.parse(str(ref)) == ref
    assert ModelRef.model_validate_json(ref.model_dump_json()) == ref
    assert "+".join(map(str, ref.parts)) == str(ref)


def test_a_revision_of_no_adapter() -> None:
    with pytest.raises(ValidationError, match="without an adapter"):
        ModelRef(path="a", adapter_revision="v1")


def test_keys_of_recipes_without_adapters_are_what_they_were() -> None:
    recipe = MergeRecipe(
        method="linear", base=ModelRef(path="b"), experts={"e": ModelRef(path="e")}, parameters={}
    )
    assert '"base":{"path":"b","revision":null}' in recipe.canonical()
    other = recipe.model_copy(update={"base": ModelRef(path="b", adapter="a")})
    assert other.key != recipe.key
