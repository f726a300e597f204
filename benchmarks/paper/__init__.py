"""The tables and figures of Havrilla et al. 2024 (arXiv 2403.04642)."""
