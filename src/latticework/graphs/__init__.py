"""Learning on whole graphs: classes, numbers and counts of each graph of a set."""
