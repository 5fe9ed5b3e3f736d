"""The lattice itself: nouns, folds, ledger, statistics, report. It knows no method and no kind of data."""
