"""The pages that show results: one self-contained file each."""
