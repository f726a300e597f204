"""Moved to `tokengym.agents.training`; this name stays here for one version."""

from ..lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, {}, moved={"masked_aggregate": "tokengym.agents.training:masked_aggregate"})
