"""What diffusers' pipelines are: denoisers, block stacks, solvers, guidance, their calls."""
