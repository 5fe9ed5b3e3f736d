"""How nodes are read: settled by a fit, kept in its model's schema, the same for all later data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from latticework.core.task import Part

# whether features are bags of words; what neighbours' means are multiplied by; which steps along relations say nothing new
SETTLED = ("bags", "scales", "doubled")


def settled(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What of it a schema holds; a model saved before a key was among it judges by the data at hand, but walks all steps."""
    found = {key: schema[key] for key in SETTLED if key in schema}
    return {"doubled": [], **found} if "relations" in schema else found


def read_alike(part: Part, schema: Mapping[str, Any]) -> Part:
    """A part that is read as the fit of this schema read its train part, whatever else it holds."""
    return part._replace(schema={**part.schema, **settled(schema)})


def read_as_bags(part: Part, x: Tensor) -> bool:
    """Whether features are bags of words, 0 or 1 throughout: as was settled, else by themselves."""
    told = (part.schema or {}).get("bags")
    return bool(((x == 0) | (x == 1)).all()) if told is None else bool(told)
