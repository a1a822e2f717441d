"""Feeding: what can be fed, the books of who got what, and the Spark task that sends the rows."""
