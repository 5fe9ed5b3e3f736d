"""Values: names at every depth, identities, bounds, settings by path."""

from __future__ import annotations

import json
import math
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.core import registry
from latticework.core.errors import UserError
from latticework.core.grid import entry_of
from latticework.core.method import Ref
from latticework.core.registry import class_value
from latticework.core.tuning import Tuned, _distributions, search_space
from latticework.core.value import Value, read_text, setting


class Inner(Value):
    name: ClassVar[str] = "inner"
    width: int = setting(3, "a width", ge=1, le=10)


class Other(Inner):
    name: ClassVar[str] = "other"


class Outer(Value):
    name: ClassVar[str] = "outer"
    part: Inner = setting(Inner(), "a part")
    weights: tuple[float, ...] = setting((0.0, 1.0), "some numbers", late=True)
    note: str | None = setting(None, "a text")


def test_the_class_is_written_at_every_depth() -> None:
    plain = Outer(part=Other()).plain()
    assert plain == {"is": "outer", "part": {"is": "other", "width": 3}, "weights": [0.0, 1.0], "note": None}


def test_values_that_differ_only_in_a_nested_class_hash_apart() -> None:
    assert Outer(part=Inner()).key() != Outer(part=Other()).key()


def test_late_fields_are_left_out_of_the_outermost_identity_only() -> None:
    class Wrapper(Value):
        name: ClassVar[str] = "wrapper"
        inner: Outer = setting(Outer(), "inner")

    changed = Outer(weights=(5.0,))
    assert changed.key(late=False) == Outer().key(late=False)
    assert changed.key() != Outer().key()
    assert Wrapper(inner=changed).key(late=False) != Wrapper().key(late=False)


def test_a_revision_changes_the_key() -> None:
    before = Inner().key()
    try:
        Inner.revision = 2
        assert Inner().key() != before
    finally:
        Inner.revision = 1


@pytest.mark.parametrize("bad", [0, 11, "wide"])
def test_bounds_are_enforced_with_a_message(bad: object) -> None:
    with pytest.raises(UserError, match=r"inner\.width: .*not"):
        Inner.make({"width": bad})


def test_a_misspelt_field_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no field 'widht'; did you mean 'width'"):
        Inner.make({"widht": 3})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_there_is_no_nan_and_no_infinity(bad: float) -> None:
    with pytest.raises(UserError):
        Outer.make({"weights": [bad]})


def test_values_are_frozen_and_hashable() -> None:
    value = Outer()
    with pytest.raises(Exception, match="frozen"):
        value.note = "x"  # type: ignore[misc]
    assert hash(value) == hash(Outer())


def test_settings_reach_into_nested_values() -> None:
    assert Outer().with_settings({"part.width": "7", "weights": "1,2"}) == Outer(part=Inner(width=7), weights=(1.0, 2.0))
    with pytest.raises(UserError, match=r"part\.width: .*10, not 70"):
        Outer().with_settings({"part.width": "70"})
    with pytest.raises(UserError, match="did you mean 'width'"):
        Outer().with_settings({"part.widht": 1})


@given(st.integers(1, 10), st.lists(st.floats(-1e6, 1e6, allow_nan=False), max_size=4), st.none() | st.text(max_size=5))
@settings(max_examples=50, deadline=None)
def test_plain_and_back(width: int, weights: list[float], note: str | None) -> None:
    value = Outer(part=Inner(width=width), weights=tuple(weights), note=note)
    plain = json.loads(json.dumps(value.plain()))
    rest = {k: v for k, v in plain.items() if k != "is"} | {"part": Inner(width=plain["part"]["width"])}
    assert Outer.make(rest) == value and Outer.make(rest).key() == value.key()


def test_every_method_goes_through_json_at_depth() -> None:
    for entry in registry.entries("method"):
        if any(f.is_required() for f in entry.load().model_fields.values()):
            continue
        value = entry.load().make()
        again = class_value("method", json.loads(json.dumps(value.plain())))
        assert again == value and again.key() == value.key(), entry.name


def test_texts_of_the_command_line() -> None:
    assert read_text("3") == 3 and read_text("0.5") == 0.5 and read_text("true") is True
    assert read_text("0,0,1,6.67") == [0, 0, 1, 6.67] and read_text("adam") == "adam"


def test_an_entry_is_written_with_presets_and_nested_settings() -> None:
    assert entry_of("mlp(hidden=8; layers=3)").plain() | {} == entry_of("mlp").with_settings({"hidden": 8, "layers": 3}).plain()
    nested = entry_of("tuned(method=mlp(hidden=8); trials=3)")
    assert isinstance(nested, Tuned) and nested.method.hidden == 8 and nested.trials == 3  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="not closed"):
        entry_of("mlp(hidden=8")
    with pytest.raises(UserError, match="write settings as"):
        entry_of("mlp(hidden)")
    with pytest.raises(UserError, match="did you mean 'mlp'"):
        entry_of("mlpp")


def test_a_label_says_the_nearest_preset() -> None:
    for entry in registry.entries("method"):
        if any(field.is_required() for field in entry.load().model_fields.values()):
            continue
        plain = entry_of(entry.name)
        assert entry_of(plain.label) == plain and (plain.label == entry.name or plain.name != entry.name), plain.label
        for preset in entry.facts.get("presets", {}):
            method = entry_of(f"{entry.name}:{preset}")
            assert "(" not in method.label and entry_of(method.label) == method, method.label
    changed = entry_of("dagnn:citeseer(hops=3)")
    assert changed.label == "dagnn:citeseer(hops=3)" and entry_of("dagnn(hops=3)").label == "dagnn(hops=3)"


def test_a_ref_holds_a_method_by_name() -> None:
    assert Ref.make({"method": "gcn"}).plain()["method"]["is"] == "gcn"


def test_tuning_looks_through_nested_methods() -> None:
    method = entry_of("logistic-readout(encoder=svd)")
    assert set(search_space(method)) == {f"encoder.{k}" for k in search_space(entry_of("svd"))}
    assert "layers" in search_space(entry_of("gcn"))


def test_what_was_set_by_hand_inside_is_not_tuned() -> None:
    from latticework.core.grid import Grid

    text = "contrast(backbone=k-path(k=2; width=8))"
    assert set(registry.set_by_hand(registry.settings_of(text))) == {"backbone", "backbone.k", "backbone.width"}
    grid = Grid.make({"data": ["rings-and-cliques"], "entries": [text, "k-path(k=2; width=8)"], "tune": 3, "baselines": False})
    (_, wrapped, _), (_, plain, _) = grid.cases()[0].entries
    assert isinstance(wrapped, Tuned) and isinstance(plain, Tuned)
    inner = {key.removeprefix("backbone."): where for key, where in wrapped.space().items() if key.startswith("backbone.")}
    assert inner == plain.space() and "k" not in inner and "width" not in inner


def test_every_place_where_tuning_looks_is_a_setting() -> None:
    optuna = pytest.importorskip("optuna")
    for entry in registry.entries("method"):
        if any(field.is_required() for field in entry.load().model_fields.values()):
            continue
        method = entry_of(entry.name)
        space = search_space(method)
        assert set(_distributions(optuna, space)) == set(space)
        for name, where in space.items():
            for value in where if isinstance(where, list) else where[:2]:
                method.with_settings({name: value})
    for wrong in (("low", "high"), (1,), (1, 2, "linear"), "auto"):
        with pytest.raises(TypeError, match="a list of choices"):
            setting(1, "a field", search=wrong)


def test_the_word_none_is_no_value_only_where_none_is_meant() -> None:
    assert Outer().with_settings({"note": "none"}).note is None
    assert entry_of("gcn(norm=none)").norm == "none"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("ncn(encoder=svd)", r"^ncn\.encoder: input should be 'puregcn'.*; or 'svd' cannot stand here; a Backbone is needed$"),
        ("ncn(encoder=3)", r"^ncn\.encoder: input should be 'puregcn'[^\[]*, not 3$"),
        ("tc-reweight(link=ncn)", r"^tc-reweight\.link: 'ncn' cannot stand here; a Backbone is needed$"),
    ],
)
def test_a_field_of_several_forms_says_what_each_wants(entry: str, says: str) -> None:
    """In the user's words, without the checker's names for the forms."""
    with pytest.raises(UserError, match=says):
        entry_of(entry)
