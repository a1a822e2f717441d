"""Views of a cluster for users and other programs: progress, notebook, web page, metrics. They only read."""
