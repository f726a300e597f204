"""Gymnasium environments and agents for teaching language models to reason with reinforcement learning."""

from .envs import register_envs

register_envs()
