"""Values: the table of one metric, an item and coalition each."""
