"""Speed and memory of this machine."""
