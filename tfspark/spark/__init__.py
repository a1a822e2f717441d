"""Everything about a Spark session: finding, starting and asking Spark; every private Spark call is in here."""
