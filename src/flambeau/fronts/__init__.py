"""Several fronts on one port: a supervisor deals connections to front processes, and makes one service of them."""
