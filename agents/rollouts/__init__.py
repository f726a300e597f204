"""How attempts are collected: policies, the rollout loop, continuations of prefixes."""
