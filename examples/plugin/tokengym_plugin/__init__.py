"""A reward and two agents that tokengym finds through entry points."""
