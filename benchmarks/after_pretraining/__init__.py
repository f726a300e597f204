"""The experiments of Tsilivis et al. 2025 (arXiv 2510.11495)."""
