"""Every method that a comparison can run, one file each."""
