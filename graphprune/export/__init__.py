"""What a result has to be loadable with, turned into sizes before anything is pruned."""
