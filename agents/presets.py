"""Recipes by name: settings of an agent, each with its source.

A published recipe says how attempts become a loss. Numbers that depend on model and hardware (learning rate, problems
and attempts of an iteration) stay the agent's own. The preset "tiny" is of such numbers alone.
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from ..registry import unknown_name

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """A recipe.

    Attributes:
        agent: Name of the agent that it is for.
        source: Paper that it is from, or measurement that it rests on.
        settings: Fields of the agent's configuration.
    """

    agent: str
    source: str
    settings: Mapping[str, Any]


PRESETS = {
    "grpo": Preset("grpo", "Shao et al. 2024, arXiv 2402.03300", {"kl_coef": 0.04, "kl_estimator": "k3"}),
    "dr-grpo": Preset("grpo", "Liu et al. 2025, arXiv 2503.20783", {"scale": "none", "aggregation": "constant"}),
    "dapo": Preset(
        "grpo",
        "Yu et al. 2025, arXiv 2503.14476",
        {
            "clip": 0.2,
            "clip_high": 0.28,
            "aggregation": "tokens",
            "dynamic_sampling": 10,
            "overlong_buffer": 0.2,
            "minibatches": 16,
        },
    ),
    "gspo": Preset(
        "grpo",
        "Zheng et al. 2025, arXiv 2507.18071",
        {"ratio": "sequence", "clip": 3e-4, "clip_high": 4e-4, "minibatches": 4},
    ),
    "cispo": Preset(
        "grpo",
        "MiniMax 2025, arXiv 2506.13585; the upper bound is of Khatri et al. 2025, arXiv 2510.13786",
        {"surrogate": "cispo", "clip": 1.0, "clip_high": 4.0, "aggregation": "tokens", "minibatches": 16},
    ),
    "lite-ppo": Preset("grpo", "Liu et al. 2025, arXiv 2508.08221", {"scale": "batch", "aggregation": "tokens"}),
    "tiny": Preset(
        "ppo",
        "for tokengym/tiny in ten thousand attempts, measured by `tokengym bench ppo`",
        {
            "problems_per_iteration": 64,
            "minibatch_size": 64,
            "epochs": 1,
            "gae_lambda": 1.0,
            "learning_rate": 2e-4,
            "critic_layers": 2,
        },
    ),
    "rloo": Preset(
        "reinforce", "Ahmadian et al. 2024, arXiv 2402.14740", {"baseline": "rloo", "samples_per_problem": 4}
    ),
}


def apply_preset(name: str, agent: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preset, with those given besides, which win; a warning names each that contradicts.

    Args:
        name: Name of the preset.
        agent: Name of the agent that is configured.
        given: Settings of the agent's configuration.

    Raises:
        UnknownNameError: No preset has that name.
        ValueError: The preset is for another agent.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    preset = PRESETS[name]
    if preset.agent != agent:
        own = ", ".join(other for other, recipe in PRESETS.items() if recipe.agent == agent) or "none"
        raise ValueError(f"preset {name!r} is for the agent {preset.agent!r}; presets of {agent!r}: {own}")
    for setting, value in preset.settings.items():
        if setting in given and given[setting] != value:
            _logger.warning("preset %r sets %s to %r; %r was given and is used", name, setting, value, given[setting])
    return {**preset.settings, **given}


def with_preset(config_class: type, name: str | None, agent: str) -> type:
    """The configuration class with a preset's settings for defaults, as command lines parse it; see `apply_preset`."""
    if name is None:
        return config_class
    hints = get_type_hints(config_class)
    settings = apply_preset(name, agent, {})
    fields = [(key, hints[key], dataclasses.field(default=value)) for key, value in settings.items()]
    made = dataclasses.make_dataclass(config_class.__name__, fields, bases=(config_class,), frozen=True)
    made.__doc__ = config_class.__doc__
    return made
