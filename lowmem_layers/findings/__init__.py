"""From a record to answers: importance, interactions, comparisons, cornerstones, the tables of the paper."""
