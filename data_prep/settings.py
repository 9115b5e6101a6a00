"""The base of every settings model. A key that no model knows is an error, never ignored."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Strict, immutable settings: unknown keys are refused, every field has a default or is required."""

    model_config = ConfigDict(extra="forbid", frozen=True)
