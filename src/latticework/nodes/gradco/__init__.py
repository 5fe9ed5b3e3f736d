"""GRADCO: orbit adjacencies of graphlets of up to four nodes, and vectors made from them."""
