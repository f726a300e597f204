"""Smaller experiments: the demo, rewards of PPO, conditioning on returns, the linear theory."""
