"""Run a plan's graph: which nodes exist, which are to be made, who makes them."""
