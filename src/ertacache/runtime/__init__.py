"""Running a pipeline under a profile, and counting what it runs."""
