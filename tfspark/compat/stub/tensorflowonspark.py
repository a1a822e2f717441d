"""Sent to executors by `tfspark.compat.install`: importing it puts tfspark's modules in its place."""

import tfspark.compat

IS_TFSPARKS = True

tfspark.compat.install()
