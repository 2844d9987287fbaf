"""From a pipeline and a few prompts to a profile."""
