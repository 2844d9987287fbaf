"""VBench in an environment of its own; video files are all that is exchanged."""
