"""What all read-outs share: a model made of an encoder's model and an estimator that reads its vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from latticework.core.method import Model
from latticework.core.result import Findings
from latticework.core.task import Part


class ReadoutModel(Model):
    """An encoder's model and a scikit-learn estimator of its vectors; subclasses give `predict`.

    The method has a field `encoder`; the schema keeps the encoder's own under that name.
    """

    def __init__(self, method: Any, schema: Mapping[str, Any], encoder: Any, estimator: Any) -> None:
        # an encoder that ran out of time may be another than was asked: what is saved says which it is
        self.method = method if encoder.method == method.encoder else method.but(encoder=encoder.method)
        self.schema, self.encoder, self.estimator = schema, encoder, estimator
        self.scope = encoder.scope

    def state(self) -> Mapping[str, Any]:
        inner = {f"encoder.{name}": value for name, value in self.encoder.state().items()}
        return {**inner, "readout": self.estimator}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        inner = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
        encoder = type(method.encoder).model.restore(method.encoder, schema["encoder"], inner)
        return cls(method, schema, encoder, state["readout"])

    def explain(self, part: Part) -> Findings:
        return self.encoder.explain(part)  # type: ignore[no-any-return]

    def parameters(self) -> int:
        return int(self.encoder.parameters())
