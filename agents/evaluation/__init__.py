"""How policies and outcome models are measured."""
