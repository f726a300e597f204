"""The commands of `tokengym`, a file for each or for a few that belong together; none loads PyTorch before it runs."""
