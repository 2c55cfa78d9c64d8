"""Weight files: what is in them, and how a decoder layer's share of them is read without the rest."""
