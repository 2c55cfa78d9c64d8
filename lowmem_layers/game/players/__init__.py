"""Who plays: players, coalitions, groups of players, and the prefix tree of coalitions."""
