"""Everything about a Spark session: find, start and query Spark; all calls to Spark's private API are here."""
