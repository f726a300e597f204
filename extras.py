"""Optional dependencies: which extra of the distribution brings what, and the error where it is missing."""

import sys
from importlib.util import find_spec

PACKAGES = {
    "gguf": "gguf",
    "hub": "datasets",
    "lora": "peft",
    "plots": "matplotlib",
    "quantization": "bitsandbytes",
    "sb3": "stable_baselines3",
    "vllm": "vllm",
}
"""Package to import for each extra."""


def missing_extra(extra: str, feature: str) -> ImportError:
    """The error for a feature whose extra is not installed, with the command that installs it."""
    return ImportError(f'{feature} needs {PACKAGES[extra]}, an extra: pip install "tokengym[{extra}]"')


def need(extra: str, feature: str) -> None:
    """Checks that an extra is installed, importing nothing.

    Args:
        extra: Name of the extra.
        feature: Name of the feature that needs it, for the message.

    Raises:
        ImportError: The package is not installed.
    """
    package = PACKAGES[extra]
    if (sys.modules[package] if package in sys.modules else find_spec(package)) is None:
        raise missing_extra(extra, feature)
