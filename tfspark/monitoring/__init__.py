"""Views of a cluster for people and other programs: progress, notebook, web page, metrics. They only read."""
