"""A reward and an agent that tokengym finds through entry points."""
