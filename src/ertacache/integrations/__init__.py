"""A profile inside other people's engines: entry points that the engines find by themselves."""
