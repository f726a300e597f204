"""Moved to `tokengym.agents.training`; these names stay here for one version."""

from ..lazy import lazy_names

_HERE = "tokengym.agents.training"
__getattr__, __dir__ = lazy_names(
    __name__, {}, moved={name: f"{_HERE}:{name}" for name in ("Example", "Learner", "OptimizerConfig")}
)
