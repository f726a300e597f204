"""How weights are trained: losses, advantages, the optimizer loop, checkpoints and run folders."""
