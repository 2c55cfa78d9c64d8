"""Answers: importance, interactions, cornerstones, comparisons, the tables of the paper."""
