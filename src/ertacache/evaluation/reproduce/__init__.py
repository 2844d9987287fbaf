"""`ertacache reproduce`: the paper's tables and figures, measured and held against what it prints."""
