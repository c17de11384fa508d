"""The part of a spec that names an importance criterion; its options are the criterion's own."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_serializer, model_validator
from pydantic_core import CoreSchema

from graphprune.errors import GraphPruneError
from graphprune.importance import Criterion, criteria


class CriterionSpec(BaseModel):
    """An importance criterion, its own options, and the averaging that the engine does for any criterion.

    In YAML options stand beside the name: ``{name: lora, variant: paper, average: 0.9}``, or just ``lora``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field("lora", description="A registered criterion.")
    average: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="Weight of the past in the sliding average of scores (LoRAPrune Eq. 11).",
    )
    options: dict[str, Any] = Field({}, description="Options of the criterion, complete, validated by it.")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict):
            return value
        rest = {"name": "lora", **value}
        own = {key: rest.pop(key) for key in ("name", "average") if key in rest}
        rest = {**rest.pop("options", {}), **rest}
        if isinstance(own["name"], str):
            rest = _class(own["name"]).options_model.model_validate(rest).model_dump(mode="json")
        return {**own, "options": rest}

    @model_serializer
    def _write(self) -> dict[str, Any]:
        return {"name": self.name, "average": self.average, **self.options}

    def build(self) -> Criterion:
        """The criterion, ready to score."""
        criterion = _class(self.name)
        return criterion(criterion.options_model.model_validate(self.options))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        average = {"type": "number", "minimum": 0, "exclusiveMaximum": 1, "default": 0.9}
        average["description"] = cls.model_fields["average"].description or ""
        forms: list[dict[str, Any]] = [{"type": "string", "enum": list(criteria.names())}]
        for name, criterion in criteria.load_all().items():
            options = handler.resolve_ref_schema(handler(criterion.options_model.__pydantic_core_schema__))
            properties = {"name": {"const": name}, "average": average, **options.get("properties", {})}
            required = ["name"] if name != "lora" else []
            form = {"type": "object", "properties": properties, "additionalProperties": False}
            forms.append({**form, "title": name, "required": [*required, *options.get("required", [])]})
        return {"anyOf": forms, "description": "The importance criterion: a name, or a name with options."}


def _class(name: str) -> type[Criterion]:
    """The registered criterion class; a ``ValueError`` with the nearest names for an unknown one."""
    try:
        return criteria.get(name)
    except GraphPruneError as error:
        raise ValueError(str(error)) from None
