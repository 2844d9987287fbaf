"""`ertacache reproduce`: the paper's tables and its Figure 5, measured and held against what it prints."""
