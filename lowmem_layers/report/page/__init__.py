"""The page: the answer in words, figures to explore, and how the run was made, in one file that loads nothing."""
