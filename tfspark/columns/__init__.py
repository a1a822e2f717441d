"""Columns: which tensor a Spark or Arrow column becomes, and the forms in which it travels."""
