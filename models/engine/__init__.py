"""The rollout engine: key-value caches whose rows are the environment's slots, the decoders and scorers on them."""
