"""Columns: which tensor a Spark or Arrow column becomes, and in which forms it is sent."""
