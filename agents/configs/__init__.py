"""Settings of agents and of search: classes that need neither PyTorch nor a model, a file for each agent."""
