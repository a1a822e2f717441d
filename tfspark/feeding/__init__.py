"""Feeding: the data that can be fed, the record of which worker got which rows, and the Spark task that sends them."""
